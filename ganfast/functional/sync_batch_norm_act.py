"""Batch normalisation over the batches of all processes, with its activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ganfast.activations import ActivationConfig
from ganfast.ops import batch_norm_act as _op

__all__ = ["sync_batch_norm_act"]


def sync_batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | None,
    eps: float,
    *,
    activation: str | None,
    negative_slope: float,
    order: str,
    num_batches_tracked: Tensor | None,
    group: Any = None,
) -> Tensor:
    """Normalise with the statistics of the batches of all processes, in training.

    Each process sends its channels' sums and its count, 2 C + 1 numbers, in one all-reduce forward
    and 2 C in one backward; batches may differ in size. The gradients of weight and bias are this
    process's share, as DistributedDataParallel expects. Differentiable to any order, by torch's own
    operations from the second on.

    Arguments are those of :func:`batch_norm_act`, and ``group``: the processes, None for all.

    Source: Peng et al. 2018, section 3.2, https://arxiv.org/abs/1711.07240
    """
    y: Tensor = _SyncBatchNormAct.apply(
        x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps,
        ActivationConfig(activation, negative_slope, order), group,
    )  # fmt: skip
    return y


class _SyncBatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        num_batches_tracked: Tensor | None,
        momentum: float | None,
        eps: float,
        act: ActivationConfig,
        group: Any,
    ) -> Tensor:
        u = _normalised_input(x, act)
        mean, var, count = _statistics(u, lambda sums: _summed(sums, group))
        if num_batches_tracked is not None:
            num_batches_tracked.add_(1)
        if running_mean is not None and running_var is not None:
            step: Tensor | float | None = momentum
            if momentum is None:
                assert num_batches_tracked is not None  # the layer has one
                step = num_batches_tracked.double().reciprocal()
            for running, batch in ((running_mean, mean), (running_var, var * count / (count - 1))):
                running.copy_((1 - step) * running.double() + step * batch)  # type: ignore[operator]
        y, stats = _op.evaluate(x, weight, bias, mean.to(u.dtype), var.to(u.dtype), eps, *act)
        ctx.save_for_backward(x, weight, bias, stats, count)
        ctx.constants = eps, act, group
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias, stats, count = ctx.saved_tensors
        eps, act, group = ctx.constants
        if torch.is_grad_enabled():
            inputs = [t for t, n in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if n]
            y = _differentiable(x, weight, bias, eps, act, group)
            found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
            gradients = [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]
            return (*gradients, *(None,) * 7)
        need_dx, need_weight, need_bias = ctx.needs_input_grad[:3]
        wide_x, wide_dy = x.to(stats.dtype), dy.to(stats.dtype)
        dx, dweight, dbias = _op.backward(
            wide_dy, wide_x, weight, stats, eps, False, *act, need_dx, True
        )
        if need_dx:
            sums = _summed(torch.cat((dweight, dbias)).double(), group) / count
            dx = (dx + _mean_terms(wide_x, stats, sums, act)).to(x.dtype)
        return (
            dx if need_dx else None,
            dweight if need_weight else None,
            dbias if need_bias else None,
            *(None,) * 7,
        )


def _mean_terms(x: Tensor, stats: Tensor, sums: Tensor, act: ActivationConfig) -> Tensor:
    """Return what dx has beyond scale * g: the terms with sum(g) / M and sum(g h) / M.

    With h = (u - mean) * rstd they are ``-scale * (sum(g) / M + h * sum(g h) / M)``, a line in u
    for each channel; behind an activation, times a'(x).
    """
    mean, rstd, scale, _ = stats[0].double().unbind()
    mean_gh, mean_g = sums.chunk(2)
    factor = -scale * rstd * mean_gh
    offset = -scale * mean_g - factor * mean
    u = _normalised_input(x, act)
    line = torch.addcmul(_per_channel(offset, u), u, _per_channel(factor, u))
    return act.gate_before(line, x)


def _differentiable(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: ActivationConfig,
    group: Any,
) -> Tensor:
    """Compute y again with operations that autograd can go through, the all-reduce included."""
    u = _normalised_input(x, act)
    mean, var, _ = _statistics(u, lambda sums: _AllReduce.apply(sums, group))
    z = (u - _per_channel(mean, u)) * _per_channel((var + eps).rsqrt(), u)
    if weight is not None:
        z = z * _per_channel(weight, u)
    if bias is not None:
        z = z + _per_channel(bias, u)
    return act.after(z).to(x.dtype)


def _statistics(u: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and count over all processes, in double.

    Each process's mean and variance have u's precision. Sums are in double, so that squaring the
    mean costs the variance no digits.
    """
    count = u.numel() // u.shape[1]
    if count:
        var, mean = torch.var_mean(u, [d for d in range(u.dim()) if d != 1], correction=0)
    else:  # this process has no images, but takes part in the all-reduce
        var, mean = (u.sum([d for d in range(u.dim()) if d != 1]) for _ in range(2))
    mean, var = mean.double(), var.double()
    size = mean.new_full((1,), count)
    sums = all_reduce(torch.cat((mean * size, (var + mean * mean) * size, size)))
    total = sums[-1]
    mean, squares = (sums[:-1] / total).chunk(2)
    return mean, (squares - mean * mean).clamp_min(0), total


def _normalised_input(x: Tensor, act: ActivationConfig) -> Tensor:
    """Return u, what is normalised, in the dtype of the arithmetic."""
    return act.before(x if x.dtype == torch.float64 else x.float())


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.to(like.dtype).reshape(1, -1, *(1,) * (like.dim() - 2))


class _AllReduce(torch.autograd.Function):
    """Sum over the processes; the gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(sums.clone(), group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None]:
        return _AllReduce.apply(gradient.contiguous(), ctx.group), None


def _summed(sums: Tensor, group: Any) -> Tensor:
    dist.all_reduce(sums, group=group)
    return sums
