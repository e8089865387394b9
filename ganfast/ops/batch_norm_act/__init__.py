"""Batch normalisation and its activation in one op.

Mathematics (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1). ``x`` has
shape (N, C, ...); per channel, M values are normalised together. With ``a`` the activation and
``order="norm_act"``::

    u    = x
    mean = sum(u) / M                    var = sum((u - mean)^2) / M
    rstd = 1 / sqrt(var + eps)           scale = weight * rstd
    z    = (u - mean) * scale + bias     y = a(z)

``order="act_norm"`` moves the activation in front: ``u = a(x)`` and ``y = z``.

``splits=k`` cuts the batch into k equal chunks, each with its own statistics; the running
statistics take up chunk after chunk, as k separate calls would.

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
takes up what rounding the mean left over.

The double backward is derived beside its kernel, in ``eager.double_backward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.ops import registry
from ganfast.ops.batch_norm_act import arguments as checks
from ganfast.ops.batch_norm_act import reference
from ganfast.ops.batch_norm_act.arguments import accumulation_dtype


def _fake_train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    order: str,
    splits: int,
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=suggest_memory_format(x))
    return y, x.new_empty((splits, 4, x.shape[1]), dtype=accumulation_dtype(x))


def _fake_eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    activation: str | None,
    negative_slope: float,
    order: str,
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=suggest_memory_format(x))
    return y, x.new_empty((1, 4, x.shape[1]), dtype=accumulation_dtype(x))


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    eps: float,
    training: bool,
    activation: str | None,
    negative_slope: float,
    order: str,
    need_dx: bool,
    need_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = (x.shape[1],) if need_affine else (0,)
    dx = torch.empty_like(x, memory_format=suggest_memory_format(x))
    return (
        dx if need_dx else x.new_empty((0,)),
        stats.new_empty(channels),
        stats.new_empty(channels),
    )


def _fake_double_backward(
    ddx: Tensor | None,
    ddweight: Tensor | None,
    ddbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    eps: float,
    training: bool,
    activation: str | None,
    negative_slope: float,
    order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    memory_format = suggest_memory_format(x)
    return (
        torch.empty_like(x, dtype=dy.dtype, memory_format=memory_format),
        torch.empty_like(x, memory_format=memory_format),
        stats.new_empty((x.shape[1],)),
    )


train = registry.define(
    "batch_norm_act_train(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean,"
    " Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum, float eps,"
    " str? activation, float negative_slope, str order, int splits) -> (Tensor y, Tensor stats)",
    eager=reference.train,
    fake=_fake_train,
    check=checks.check_train,
    triton="ganfast.ops.batch_norm_act.triton:train",
)
# Evaluation is an op of its own because it changes nothing: an exported or compiled model then
# carries no writes to its buffers.
evaluate = registry.define(
    "batch_norm_act_eval(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean,"
    " Tensor running_var, float eps, str? activation, float negative_slope, str order)"
    " -> (Tensor y, Tensor stats)",
    eager=reference.evaluate,
    fake=_fake_eval,
    check=checks.check_eval,
    triton="ganfast.ops.batch_norm_act.triton:evaluate",
)
# Gradients that nobody asked for come back with no elements.
backward = registry.define(
    "batch_norm_act_backward(Tensor dy, Tensor x, Tensor? weight, Tensor stats, float eps,"
    " bool training, str? activation, float negative_slope, str order, bool need_dx,"
    " bool need_affine) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    eager=reference.backward,
    fake=_fake_backward,
    check=checks.check_backward,
    triton="ganfast.ops.batch_norm_act.triton:backward",
)
double_backward = registry.define(
    "batch_norm_act_double_backward(Tensor? ddx, Tensor? ddweight, Tensor? ddbias, Tensor dy,"
    " Tensor x, Tensor? weight, Tensor stats, float eps, bool training, str? activation,"
    " float negative_slope, str order) -> (Tensor d_dy, Tensor d_x, Tensor d_weight)",
    eager=reference.double_backward,
    fake=_fake_double_backward,
    check=checks.check_double_backward,
    triton="ganfast.ops.batch_norm_act.triton:double_backward",
)


class _Forward(torch.autograd.Function):
    """Tie the forward ops to ``backward``; ``csrc/autograd/batch_norm_act.cpp`` is its twin."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        op: Any,
        arguments: tuple[Any, ...],
        eps: float,
        shape_of_op: tuple[str | None, float, str],
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            y, stats = op(x, weight, bias, *arguments)
        ctx.save_for_backward(x, weight, stats)
        ctx.constants = (eps, op is train, *shape_of_op)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Any, ...]:
        nothing = (None,) * 4
        if dy is None:
            return (None, None, None, *nothing)
        x, weight, stats = ctx.saved_tensors
        need_dx, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx, dweight, dbias = backward(
            dy, x, weight, stats, *ctx.constants, need_dx, need_weight or need_bias
        )
        return (
            dx if need_dx else None,
            dweight if need_weight else None,
            dbias if need_bias else None,
            *nothing,
        )


class _Backward(torch.autograd.Function):
    """Tie ``backward`` to ``double_backward``."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor, *constants: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            gradients: tuple[Tensor, Tensor, Tensor] = backward(dy, x, weight, stats, *constants)
        ctx.save_for_backward(dy, x, weight, stats)
        ctx.constants = constants[:-2]
        ctx.count = len(constants)
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    def backward(
        ctx: Any, ddx: Tensor | None, ddweight: Tensor | None, ddbias: Tensor | None
    ) -> tuple[Any, ...]:
        rest = (None,) * (1 + ctx.count)
        if ddx is None and ddweight is None and ddbias is None:
            return (None, None, None, *rest)
        dy, x, weight, stats = ctx.saved_tensors
        d_dy, d_x, d_weight = double_backward(
            ddx, ddweight, ddbias, dy, x, weight, stats, *ctx.constants
        )
        return (d_dy, d_x, d_weight if ctx.needs_input_grad[2] else None, *rest)


def _refuse_gradients(**running: Tensor | None) -> None:
    """Raise as torch does: statistics are constants of the op, a gradient would be lost."""
    for name, buffer in running.items():
        if buffer is not None and buffer.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"batch_norm_act is not differentiable with respect to {name}: give {name}.detach()"
            )


def _train_autograd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    *shape_and_splits: Any,
) -> Any:
    _refuse_gradients(running_mean=running_mean, running_var=running_var)
    buffers = (running_mean, running_var, num_batches_tracked)
    for buffer in buffers:
        if buffer is not None:  # as torch's own in-place update would
            torch.autograd.graph.increment_version(buffer)
    arguments = (*buffers, momentum, eps, *shape_and_splits)
    return _Forward.apply(x, weight, bias, train, arguments, eps, shape_and_splits[:3])


def _eval_autograd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    *shape_of_op: Any,
) -> Any:
    _refuse_gradients(running_mean=running_mean, running_var=running_var)
    arguments = (running_mean, running_var, eps, *shape_of_op)
    return _Forward.apply(x, weight, bias, evaluate, arguments, eps, shape_of_op)


def register(*, python_autograd: bool) -> None:
    """Register the autograd forms: all of them, or only what the extension leaves to Python."""
    registry.differentiate(
        "batch_norm_act_double_backward", by=reference.double_backward_differentiable
    )
    if python_autograd:
        registry.register_autograd("batch_norm_act_train", _train_autograd)
        registry.register_autograd("batch_norm_act_eval", _eval_autograd)
        registry.register_autograd("batch_norm_act_backward", _Backward.apply)
