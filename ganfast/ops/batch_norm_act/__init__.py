"""Batch normalisation and its activation in one op.

Mathematics (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1). ``x`` has
shape (N, C, ...); per channel, M values are normalised together. With ``a`` the activation and
``order="norm_act"``::

    u    = x
    mean = sum(u) / M                    var = sum((u - mean)^2) / M
    rstd = 1 / sqrt(var + eps)           scale = weight * rstd
    z    = (u - mean) * scale + bias     y = a(z)

``order="act_norm"`` applies the activation first: ``u = a(x)`` and ``y = z``.

``splits=k`` cuts the batch into k equal chunks, each with its own statistics; the running
statistics follow chunk after chunk, as in k separate calls.

Running statistics (``momentum`` m; None stands for 1 / num_batches_tracked)::

    running_mean = (1 - m) * running_mean + m * mean
    running_var  = (1 - m) * running_var  + m * var * M / (M - 1)

Backward, with ``g = dy * a'(z)`` (norm_act) or ``g = dy`` (act_norm)::

    dbias = sum(g)        dweight = rstd * sum(g * (u - mean))
    du    = scale * (g - dbias / M - (u - mean) * rstd * dweight / M)      training
    du    = scale * g                                                      evaluation
    dx    = du (norm_act)  or  du * a'(x) (act_norm)

The mask a'(z) is computed again from x by the forward's own operations, one subtraction and one
fused multiply-add, so the only tensors kept are x and ``stats``: shape (splits, 4, C), rows mean,
rstd, scale, shift, in float32 (float64 for float64). With ``m`` the mean as it is stored, rounded::

    z = (u - m) * scale + shift          shift = bias - (mean - m) * scale

Subtracting first makes the error of z that of rounding u - m, however large mean / std is; shift
corrects for the rounding of the mean.

The double backward is derived in ``reference.double_backward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.ops import registry
from ganfast.ops.batch_norm_act import arguments, reference
from ganfast.ops.tensors import accumulation_dtype, empty_like


def _fake_train(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, splits = rest
    return empty_like(x), x.new_empty((splits, 4, x.shape[1]), dtype=accumulation_dtype(x))


def _fake_eval(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_train(x, 1)


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, need_dx, need_affine = rest
    dweight, dbias = (stats.new_empty(x.shape[1] if need_affine else 0) for _ in range(2))
    return empty_like(x) if need_dx else x.new_empty(0), dweight, dbias


def _fake_double_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, _, dy, x, _, stats, *_ = arguments
    return empty_like(x, dy.dtype), empty_like(x), stats.new_empty(x.shape[1])


train = registry.define(
    "batch_norm_act_train",
    reference.train,
    fake=_fake_train,
    check=arguments.check_train,
    results=("y", "stats"),
    mutates=("running_mean", "running_var", "num_batches_tracked"),
    triton="ganfast.ops.batch_norm_act.triton:train",
)
# Evaluation is an op of its own because it changes nothing: an exported or compiled model then
# carries no writes to its buffers.
evaluate = registry.define(
    "batch_norm_act_eval",
    reference.evaluate,
    fake=_fake_eval,
    check=arguments.check_eval,
    results=("y", "stats"),
    triton="ganfast.ops.batch_norm_act.triton:evaluate",
)
# Gradients that are not needed come back with no elements.
backward = registry.define(
    "batch_norm_act_backward",
    reference.backward,
    fake=_fake_backward,
    check=arguments.check_backward,
    results=("dx", "dweight", "dbias"),
    triton="ganfast.ops.batch_norm_act.triton:backward",
)
double_backward = registry.define(
    "batch_norm_act_double_backward",
    reference.double_backward,
    fake=_fake_double_backward,
    check=arguments.check_double_backward,
    results=("d_dy", "d_x", "d_weight"),
    triton="ganfast.ops.batch_norm_act.triton:double_backward",
)


class _Forward(torch.autograd.Function):
    """Tie the forward ops to ``backward``; ``csrc/autograd/batch_norm_act.cpp`` is its twin."""

    @staticmethod
    def forward(
        ctx: Any,
        op: Any,
        constants: tuple[Any, ...],
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            y, stats = op(x, weight, bias, *rest)
        ctx.save_for_backward(x, weight, stats)
        ctx.constants, ctx.count = constants, len(rest)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Any, ...]:
        gradients: list[Tensor | None] = [None] * 3
        if dy is not None:
            need_dx, need_weight, need_bias = needed = ctx.needs_input_grad[2:5]
            found = backward(
                dy, *ctx.saved_tensors, *ctx.constants, need_dx, need_weight or need_bias
            )
            gradients = [g if need else None for g, need in zip(found, needed, strict=True)]
        return (None, None, *gradients, *(None,) * ctx.count)


class _Backward(torch.autograd.Function):
    """Tie ``backward`` to ``double_backward``."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            gradients: tuple[Tensor, Tensor, Tensor] = backward(dy, x, weight, stats, *rest)
        ctx.save_for_backward(dy, x, weight, stats)
        *ctx.constants, _, _ = rest
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    def backward(ctx: Any, *dd: Tensor | None) -> tuple[Any, ...]:
        d_dy = d_x = d_weight = None
        if any(t is not None for t in dd):
            d_dy, d_x, d_weight = double_backward(*dd, *ctx.saved_tensors, *ctx.constants)
        rest = (None,) * (len(ctx.constants) + 2)
        return (d_dy, d_x, d_weight if ctx.needs_input_grad[2] else None, None, *rest)


def _refuse_gradients(**running: Tensor | None) -> None:
    """Raise as torch does: statistics are constants of the op, a gradient would be lost."""
    for name, buffer in running.items():
        if buffer is not None and buffer.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"batch_norm_act is not differentiable with respect to {name}: give {name}.detach()"
            )


def _train_autograd(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
    running_mean, running_var, num_batches_tracked, _, eps, *act, _ = rest
    _refuse_gradients(running_mean=running_mean, running_var=running_var)
    for buffer in (running_mean, running_var, num_batches_tracked):
        if buffer is not None:  # as torch's own in-place update would
            torch.autograd.graph.increment_version(buffer)
    return _Forward.apply(train, (eps, True, *act), x, weight, bias, *rest)


def _eval_autograd(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
    running_mean, running_var, eps, *act = rest
    _refuse_gradients(running_mean=running_mean, running_var=running_var)
    return _Forward.apply(evaluate, (eps, False, *act), x, weight, bias, *rest)


def register(*, python_autograd: bool) -> None:
    """Register the autograd forms: all of them, or only what the extension leaves to Python."""
    registry.differentiate(
        "batch_norm_act_double_backward", by=reference.double_backward_differentiable
    )
    if python_autograd:
        registry.register_autograd("batch_norm_act_train", _train_autograd)
        registry.register_autograd("batch_norm_act_eval", _eval_autograd)
        registry.register_autograd("batch_norm_act_backward", _Backward.apply)
