"""Binary cross-entropy in one op, on probabilities or on logits, with a plain number as target.

Mathematics, for an element x with target t and weight w (1 where none is given). On probabilities,
as torch, with logarithms no smaller than -100::

    y  = -w * (t * log(x) + (1 - t) * log(1 - x))
    dx = dy * w * (x - t) / max(x * (1 - x), 1e-12)
    dt = dy * w * (log(1 - x) - log(x))

On logits, with p the weight of positive examples (1 where none is given) and s = sigmoid(x)::

    log(s) = min(x, 0) - log(1 + exp(-|x|))
    y  = w * ((1 - t) * x - (1 + (p - 1) * t) * log(s))
    dx = dy * w * ((p * t + 1 - t) * s - p * t)
    dt = dy * w * (log(1 - s) - p * log(s))

``reduction`` is "none", "mean" or "sum" of y. Arithmetic is in float32 for float32, float16 and
bfloat16, in float64 for float64. Only the arguments are kept for backward. What a backend computes
is y and dx; dt and the second derivatives, which hardly anybody asks for, are eager everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.ops import loss_arguments as checks
from ganfast.ops import registry
from ganfast.ops.binary_cross_entropy import eager


def _fake(
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    if reduction == "none":
        return torch.empty_like(x, memory_format=suggest_memory_format(x))
    return x.new_empty(())


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


def _fake_target_backward(
    dy: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    return torch.empty_like(target, memory_format=suggest_memory_format(x))


# target and the weights have x's shape; label stands for target where there is none.
forward = registry.define(
    "binary_cross_entropy(Tensor x, Tensor? target, float label, Tensor? weight,"
    " Tensor? pos_weight, bool from_logits, str reduction) -> Tensor",
    eager=eager.forward,
    fake=_fake,
    check=checks.check_cross_entropy,
    triton="ganfast.ops.binary_cross_entropy.triton:forward",
)
backward = registry.define(
    "binary_cross_entropy_backward(Tensor dy, Tensor x, Tensor? target, float label,"
    " Tensor? weight, Tensor? pos_weight, bool from_logits, str reduction) -> Tensor",
    eager=eager.backward,
    fake=_fake_backward,
    check=checks.check_cross_entropy_backward,
    triton="ganfast.ops.binary_cross_entropy.triton:backward",
)
target_backward = registry.define(
    "binary_cross_entropy_target_backward(Tensor dy, Tensor x, Tensor target, Tensor? weight,"
    " Tensor? pos_weight, bool from_logits, str reduction) -> Tensor",
    eager=eager.target_backward,
    fake=_fake_target_backward,
    check=checks.check_cross_entropy_backward,
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
    registry.differentiate("binary_cross_entropy_backward", by=eager.backward)
    registry.differentiate("binary_cross_entropy_target_backward", by=eager.target_backward)
    if python_autograd:
        registry.register_autograd("binary_cross_entropy", _Forward.apply)
