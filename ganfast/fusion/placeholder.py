"""What stands in the slot of an activation that the normalisation beside it computes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from ganfast.nn.batch_norm import fx_leaf

__all__ = ["FusedActivation"]

_MESSAGE = (
    "the {activation} that ganfast.fuse moved into {norm} is lost: that layer was "
    "replaced or removed. ganfast.unfuse(model) puts the activation back; call it before a tool "
    "that replaces such layers and fuse again afterwards, or call ganfast.convert_sync_batchnorm "
    "instead of another converter"
)


class FusedActivation(nn.Identity):
    """Return the input, and make sure that the activation was applied to it.

    Tools that replace a BatchNorm know nothing of an activation inside it. Each call therefore
    looks for the fused layer among the children of the Sequential, or within one of them where
    it was wrapped. Compiled and exported models look once, while they are traced.

    Args:
        activation: what stood here.
        norm: the layer that computes it.
        parent: the Sequential that has both.

    Raises:
        RuntimeError: when called without that layer beside it.
    """

    def __init__(self, activation: nn.Module, norm: nn.Module, parent: nn.Module) -> None:
        super().__init__()
        # A tuple, so that nn.Module does not take them for children. Copies of a whole model refer
        # to the copies: deepcopy and pickle remember what they have met.
        self._fused = (activation, norm, parent)
        self.train(activation.training)

    @property
    def activation(self) -> Any:
        """The module that stood here."""
        return self._fused[0]

    @property
    def norm(self) -> Any:
        """The layer that computes it."""
        return self._fused[1]

    @property
    def parent(self) -> Any:
        """The Sequential that has both."""
        return self._fused[2]

    def is_lost(self) -> bool:
        """Return whether the fused layer is gone from its Sequential."""
        _, norm, parent = self._fused
        children = parent._modules.values()
        return norm not in children and not any(
            module is norm for child in children if child is not None for module in child.modules()
        )

    # A constant to torch.compile, which else would guard the whole search; it compiles again where
    # a BatchNorm was replaced, for it guards the children of a Sequential. The mark is the one that
    # torch.compiler.assume_constant_result sets, which would import all of Dynamo. On a method:
    # torch 2.11 takes no module as the argument of such a function.
    is_lost._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def forward(self, input: Tensor) -> Tensor:
        if self.is_lost():
            raise RuntimeError(
                _MESSAGE.format(
                    activation=type(self.activation).__name__, norm=type(self.norm).__name__
                )
            )
        if isinstance(input, Proxy):  # torch.fx traces the model: the slot keeps its name
            return fx_leaf(self, input)
        return input

    def extra_repr(self) -> str:
        return type(self.activation).__name__
