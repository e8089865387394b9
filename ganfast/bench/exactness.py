"""The rule that every kernel is held to, and torch's own layers as its reference.

The exact values are torch's in float64. Our error may be at most twice torch's own at the same
dtype, plus one rounding; values that are not finite must be torch's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Verdict", "judge", "norm_of", "run", "twin", "worst_error"]


class Verdict(NamedTuple):
    """How one result compares: largest absolute errors, ours, torch's and what the rule allows.

    ``unusual`` says whether values that are not finite are torch's.
    """

    what: str
    error: float
    torch_error: float
    allowed: float
    unusual: bool

    @property
    def passed(self) -> bool:
        """Whether the rule holds."""
        return self.unusual and self.error <= self.allowed

    @property
    def closeness(self) -> float:
        """Return the error as a share of what is allowed; infinite where other values are wrong."""
        if not self.unusual:
            return float("inf")
        if self.allowed:
            return self.error / self.allowed
        return float("inf") if self.error else 0.0

    def describe(self) -> str:
        """Say how the rule is broken."""
        if not self.unusual:
            return f"{self.what}: values that are not finite differ from torch's"
        return f"{self.what}: error {self.error:.2e}, allowed {self.allowed:.2e}"


def worst_error(value: Tensor, exact: Tensor) -> float:
    """Return the largest absolute error where ``exact`` is finite; 0 for an empty tensor."""
    finite = exact.isfinite()
    difference = (value.double() - exact)[finite].abs()
    return difference.max().item() if difference.numel() else 0.0


def judge(
    what: str, ours: Tensor, torchs: Tensor, exact: Tensor, *, operands: float = 0.0
) -> Verdict:
    """Hold a result to the rule.

    Args:
        what: its name, for people.
        ours: the result.
        torchs: torch's at the same dtype, of the same shape.
        exact: torch's in float64.
        operands: allows four roundings of numbers of that size: where there are only a handful of
            values, torch's own error is often nothing by chance.

    Example::

        >>> third = torch.ones(1, dtype=torch.float64) / 3
        >>> judge("a third", third.float(), third.float(), third).passed
        True
    """
    usual = torchs.isfinite()
    same = torch.equal(ours.isnan(), torchs.isnan()) and torch.equal(
        ours[~usual & ~torchs.isnan()], torchs[~usual & ~torchs.isnan()]
    )
    finite = exact[exact.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    # For float64 the reference is no better than we are: some roundings are allowed instead.
    roundings = 64 if ours.dtype == torch.float64 else 1
    torch_error = worst_error(torchs, exact)
    allowed = 2 * torch_error + roundings * torch.finfo(ours.dtype).eps * largest
    allowed += 4 * torch.finfo(ours.dtype).eps * operands
    return Verdict(what, worst_error(ours, exact), torch_error, allowed, same)


def twin(layer: Any, dtype: torch.dtype | None = None) -> nn.Sequential:
    """Build torch's pair for one fused layer, with copies of its parameters and buffers."""
    torch_class = next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn"))
    own = [t.dtype for t in layer.state_dict().values() if t.is_floating_point()]
    norm = torch_class(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    if own:
        norm.to(own[0])
    norm.load_state_dict(layer.state_dict())
    act: nn.Module
    if layer.activation == "relu":
        act = nn.ReLU()
    elif layer.activation == "leaky_relu":
        act = nn.LeakyReLU(layer.negative_slope)
    else:
        act = nn.Identity()
    pair = nn.Sequential(norm, act) if layer.order == "norm_act" else nn.Sequential(act, norm)
    pair = pair.to(dtype or (own[0] if own else torch.float32))  # the counter stays an integer
    pair = pair.to(next(iter(layer.state_dict().values())).device if own else "cpu")
    return pair.train(layer.training)


def norm_of(pair: nn.Module) -> Any:
    """Return the BatchNorm of a pair that ``twin`` made."""
    return next(m for m in pair.children() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def run(module: nn.Module, x: Tensor, dy: Tensor, *, splits: int = 1) -> dict[str, Tensor | None]:
    """Return y, every gradient and every buffer after one forward and backward.

    ``splits`` calls the module on that many chunks in turn.
    """
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = torch.cat([module(chunk) for chunk in x.chunk(splits)]) if splits > 1 else module(x)
    y.backward(dy.to(y.dtype))
    norm = norm_of(module) if isinstance(module, nn.Sequential) else module
    result: dict[str, Tensor | None] = {"y": y.detach(), "dx": x.grad}
    for name, parameter in norm.named_parameters():
        result[f"d{name}"] = parameter.grad
    result.update(norm.named_buffers())
    return result
