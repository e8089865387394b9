"""Binary cross-entropy in one op, on probabilities or on logits, with a plain number as target.

Mathematics, for an element x with target t and weight w (1 by default). On probabilities,
as torch, with logarithms no smaller than -100::

    y  = -w * (t * log(x) + (1 - t) * log(1 - x))
    dx = dy * w * (x - t) / max(x * (1 - x), 1e-12)
    dt = dy * w * (log(1 - x) - log(x))

On logits, with p the weight of positive examples (1 by default) and s = sigmoid(x)::

    log(s) = min(x, 0) - log(1 + exp(-|x|))
    y  = w * ((1 - t) * x - (1 + (p - 1) * t) * log(s))
    dx = dy * w * ((p * t + 1 - t) * s - p * t)
    dt = dy * w * (log(1 - s) - p * log(s))

``reduction`` is "none", "mean" or "sum" of y. Arithmetic is in float32 for float32, float16 and
bfloat16, in float64 for float64. Only the arguments are kept for backward. Backends compute y and
dx; dt and the second derivatives are rare, and eager on every backend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.ops import registry
from ganfast.ops.losses import arguments, reference
from ganfast.ops.tensors import empty_like


def _fake(x: Tensor, *rest: Any) -> Tensor:
    *_, reduction = rest
    return empty_like(x) if reduction == "none" else x.new_empty(())


def _fake_backward(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
    return empty_like(x)


def _fake_target_backward(dy: Tensor, x: Tensor, target: Tensor, *_: Any) -> Tensor:
    return empty_like(x, target.dtype)


# target and the weights have x's shape; label stands for target if there is none.
forward = registry.define(
    "binary_cross_entropy",
    reference.binary_cross_entropy,
    fake=_fake,
    check=arguments.check_cross_entropy,
    triton="ganfast.ops.losses.triton:binary_cross_entropy",
)
backward = registry.define(
    "binary_cross_entropy_backward",
    reference.binary_cross_entropy_backward,
    fake=_fake_backward,
    check=arguments.check_cross_entropy_backward,
    triton="ganfast.ops.losses.triton:binary_cross_entropy_backward",
)
target_backward = registry.define(
    "binary_cross_entropy_target_backward",
    reference.binary_cross_entropy_target_backward,
    fake=_fake_target_backward,
    check=arguments.check_cross_entropy_backward,
)


class _Forward(torch.autograd.Function):
    """Tie the op to its backward ops; ``csrc/autograd/binary_cross_entropy.cpp`` is its twin."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor | None,
        label: float,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        *mode: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, target, weight, pos_weight)
        ctx.label, ctx.mode = label, mode
        with torch._C._AutoDispatchBelowAutograd():
            y: Tensor = forward(x, target, label, weight, pos_weight, *mode)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, target, *weights = ctx.saved_tensors
        dx = dtarget = None
        if ctx.needs_input_grad[0]:
            dx = backward(dy, x, target, ctx.label, *weights, *ctx.mode)
        if ctx.needs_input_grad[1]:
            dtarget = target_backward(dy, x, target, *weights, *ctx.mode)
        return dx, dtarget, None, None, None, None, None


def register(*, python_autograd: bool) -> None:
    """Register the autograd forms: all of them, or only what the extension leaves to Python."""
    for name in ("binary_cross_entropy_backward", "binary_cross_entropy_target_backward"):
        registry.differentiate(name, by=getattr(reference, name))
    if python_autograd:
        registry.register_autograd("binary_cross_entropy", _Forward.apply)
