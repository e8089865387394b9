"""InstanceNorm layers with an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from ganfast import functional
from ganfast.activations import check_activation, check_order
from ganfast.nn.batch_norm import Activated, fx_leaf

__all__ = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


class _InstanceNormAct(Activated, torch.nn.modules.instancenorm._InstanceNorm):
    """Add the activation's keywords and the fused forward to a torch InstanceNorm."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        order: str = "norm_act",
        **torch_only: Any,
    ) -> None:
        check_activation(activation)
        check_order(order)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats,
            device=device, dtype=dtype, **torch_only,
        )  # fmt: skip
        self.activation = activation
        self.negative_slope = negative_slope
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # torch.fx traces the model: a leaf, as torch's own layers are
            return fx_leaf(self, input)
        result: Tensor = super().forward(input)
        return result

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        # torch's forward calls it, with a batch of one for an input without one.
        return functional.instance_norm_act(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,  # None as torch takes it
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            order=self.order,
        )


class InstanceNorm1d(_InstanceNormAct, torch.nn.InstanceNorm1d):
    """Normalise each image of (N, C, L) or (C, L) and apply an activation, in one kernel.

    :class:`torch.nn.InstanceNorm1d` with three more keywords, passed on to
    :func:`ganfast.functional.instance_norm_act`: ``activation`` (None, "relu", "leaky_relu"),
    ``negative_slope`` and ``order`` ("norm_act", "act_norm"). A channels-last input stays so.

    Raises:
        ValueError: unknown ``activation`` or ``order``.

    Examples:
        >>> layer = InstanceNorm1d(8, activation="relu")
        >>> layer(torch.randn(4, 8, 32)).shape
        torch.Size([4, 8, 32])
    """


class InstanceNorm2d(_InstanceNormAct, torch.nn.InstanceNorm2d):
    """Normalise each image of (N, C, H, W) or (C, H, W) and apply an activation, in one kernel.

    :class:`torch.nn.InstanceNorm2d` with the keywords of :class:`InstanceNorm1d`.

    Examples:
        >>> layer = InstanceNorm2d(64, affine=True, activation="leaky_relu", negative_slope=0.2)
        >>> layer(torch.randn(1, 64, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """


class InstanceNorm3d(_InstanceNormAct, torch.nn.InstanceNorm3d):
    """Normalise each image of (N, C, D, H, W) or (C, D, H, W) and apply an activation.

    :class:`torch.nn.InstanceNorm3d` with the keywords of :class:`InstanceNorm1d`.

    Examples:
        >>> layer = InstanceNorm3d(8, affine=True, activation="leaky_relu")
        >>> layer(torch.randn(2, 8, 4, 4, 4)).shape
        torch.Size([2, 8, 4, 4, 4])
    """
