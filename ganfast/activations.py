"""The table of activations that a kernel can fuse.

A row is all that the package knows of an activation: layers, fusion, the torch.compile backend and
``ganfast verify`` derive from it. Every backend serves every row: the C++ form is
``csrc/common/activation.h``, the Triton form ``ops/batch_norm_act/triton_forward.py``, and a test
holds their names equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_aten = torch.ops.aten


class Activation(NamedTuple):
    """Describe one activation ``a``, a piecewise linear function.

    Attributes:
        apply: ``(z, slope) -> a(z)``, elementwise.
        gate: ``(dy, z, slope) -> dy * a'(z)``, elementwise; at a kink it is torch's choice.
        layer: torch's module for it.
        functions: what else computes it in torch, in place or not: functions as torch.compile shows
            them, and names of Tensor's methods.
        kinks: where a' jumps. Elsewhere a'' is 0, as the double backward assumes.
        takes_slope: whether ``slope`` has any meaning for it, ``layer`` and ``functions``.
    """

    apply: Callable[[Tensor, float], Tensor]
    gate: Callable[[Tensor, Tensor, float], Tensor]
    layer: type[nn.Module]
    functions: tuple[Any, ...] = ()
    kinks: tuple[float, ...] = ()
    takes_slope: bool = False


ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation(lambda z, slope: z, lambda dy, z, slope: dy, nn.Identity),
    # Its own row, not a leaky ReLU of slope 0: 0 * -inf would be NaN.
    "relu": Activation(
        lambda z, slope: torch.relu(z),
        lambda dy, z, slope: _aten.threshold_backward.default(dy, z, 0.0),
        nn.ReLU,
        functions=(functional.relu, torch.relu, torch.relu_, "relu", "relu_"),
        kinks=(0.0,),
    ),
    "leaky_relu": Activation(
        functional.leaky_relu,
        lambda dy, z, slope: _aten.leaky_relu_backward.default(dy, z, slope, False),
        nn.LeakyReLU,
        functions=(functional.leaky_relu, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_),
        kinks=(0.0,),
        takes_slope=True,
    ),
}

ORDERS = ("norm_act", "act_norm")
"""``norm_act``: act(bn(x)).  ``act_norm``: bn(act(x))."""


class ActivationConfig(NamedTuple):
    """The activation of one layer or call: ``activation``, its slope, and ``order``.

    The ops take these three one after another.
    """

    activation: str | None = None
    negative_slope: float = 0.01
    order: str = "norm_act"

    @classmethod
    def of(cls, layer: Any) -> ActivationConfig:
        """Return a fused layer's."""
        return cls(layer.activation, layer.negative_slope, layer.order)

    @property
    def row(self) -> Activation:
        """The activation's row of the table."""
        return ACTIVATIONS[self.activation]

    def before(self, x: Tensor) -> Tensor:
        """Return u, which is normalised: a(x) for ``act_norm``, else x."""
        return self.row.apply(x, self.negative_slope) if self.order == "act_norm" else x

    def after(self, z: Tensor) -> Tensor:
        """Return y of the normalised z: a(z) for ``norm_act``, else z."""
        return self.row.apply(z, self.negative_slope) if self.order == "norm_act" else z

    def gate_before(self, du: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of x from that of u."""
        return self.row.gate(du, x, self.negative_slope) if self.order == "act_norm" else du

    def gate_after(self, dy: Tensor, z: Tensor) -> Tensor:
        """Return the gradient of z from that of y."""
        return self.row.gate(dy, z, self.negative_slope) if self.order == "norm_act" else dy

    def layer(self) -> nn.Module:
        """Build torch's module of the activation alone."""
        row = self.row
        return row.layer(self.negative_slope) if row.takes_slope else row.layer()


def check_activation(activation: str | None) -> None:
    """Raise ValueError if ``activation`` is no row of the table."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}"
        )


def check_order(order: str) -> None:
    """Raise ValueError if ``order`` is neither 'norm_act' nor 'act_norm'."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")


def why_not_slope(slope: Any) -> str:
    """Return why a layer with this slope is not fused, or ""."""
    if isinstance(slope, (int, float)) and 0 <= slope < math.inf:
        return ""
    return f"negative_slope must be a finite number from 0 up, got {slope!r}"
