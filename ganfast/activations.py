"""The table of activations that a kernel can fuse.

A row says what the activation computes and how its gradient follows from its input. Every
backend serves every row: the C++ form is ``csrc/common/activation.h``, and a test walks this table
across all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Activation(NamedTuple):
    """Hold one activation ``a`` in its eager form.

    Attributes:
        apply: ``(z, slope) -> a(z)``, elementwise.
        gate: ``(dy, z, slope) -> dy * a'(z)``, elementwise; at exactly 0 it is torch's choice.
        takes_slope: whether ``slope`` has any meaning for it.
    """

    apply: Callable[[Tensor, float], Tensor]
    gate: Callable[[Tensor, Tensor, float], Tensor]
    takes_slope: bool


ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation(lambda z, slope: z, lambda dy, z, slope: dy, takes_slope=False),
    # Its own row, not a leaky ReLU of slope 0: 0 * -inf would be NaN.
    "relu": Activation(
        lambda z, slope: torch.relu(z),
        lambda dy, z, slope: torch.ops.aten.threshold_backward.default(dy, z, 0.0),
        takes_slope=False,
    ),
    "leaky_relu": Activation(
        torch.nn.functional.leaky_relu,
        lambda dy, z, slope: torch.ops.aten.leaky_relu_backward.default(dy, z, slope, False),
        takes_slope=True,
    ),
}

ORDERS = ("norm_act", "act_norm")
"""``norm_act``: act(bn(x)).  ``act_norm``: bn(act(x))."""


def check_activation(activation: str | None) -> None:
    """Raise ValueError where ``activation`` is no row of the table."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}"
        )


def check_order(order: str) -> None:
    """Raise ValueError where ``order`` is neither 'norm_act' nor 'act_norm'."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")
