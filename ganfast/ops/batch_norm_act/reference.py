"""The eager kernels of ``batch_norm_act``: torch's own ops, on any device and dtype.

The signatures of these functions are those of the ops.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.activations import ActivationConfig
from ganfast.ops.tensors import accumulation_dtype, empty_like, result_like


def train(
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
    """Normalise with the batch's own statistics and update the running ones in place."""
    act = ActivationConfig(activation, negative_slope, order)
    u = act.before(_chunked(x, x, splits))
    mean, rest, var = _moments(u)
    z, stats = _normalised(u - mean, mean, rest, var, weight, bias, eps)
    if x.numel() == 0:  # torch counts an empty batch, and leaves the statistics
        stats[:, 1:3] = 0  # a gradient of 0, not of NaN
        if num_batches_tracked is not None:
            num_batches_tracked.add_(splits)
        return empty_like(x), stats
    values = x.numel() // (x.shape[1] * splits)
    correction = values / (values - 1) if values > 1 else math.nan
    for chunk in range(splits):
        if num_batches_tracked is not None:
            num_batches_tracked.add_(1)
        if momentum is None:
            assert num_batches_tracked is not None  # check_train has seen to it
            step: Tensor | float = num_batches_tracked.to(u.dtype).reciprocal()
        else:
            step = momentum
        _follow(running_mean, (mean + rest)[chunk].flatten(), step)
        _follow(running_var, correction * var[chunk].flatten(), step)
    return _restored(act.after(z), x), stats


def evaluate(
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
    """Normalise with the running statistics."""
    dtype = accumulation_dtype(x)
    mean, var = (t.to(dtype).flatten().view(1, 1, -1, 1) for t in (running_mean, running_var))
    act = ActivationConfig(activation, negative_slope, order)
    u = act.before(_chunked(x, x, 1))
    z, stats = _normalised(u - mean, mean, torch.zeros_like(mean), var, weight, bias, eps)
    return _restored(act.after(z), x), stats


def backward(
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
    """Compute dx in x's dtype, dweight and dbias in the dtype of ``stats``."""
    act = ActivationConfig(activation, negative_slope, order)
    splits = stats.shape[0]
    mean, rstd, scale, shift = _per_channel(stats)
    xs, g = _chunked(x, x, splits), _chunked(dy, x, splits)
    u = act.before(xs)
    if order == "norm_act":  # else z is not needed
        g = act.gate_after(g, torch.addcmul(shift, u - mean, scale))
    if training and x.numel():
        weight = _to(weight, stats.dtype)
        mask = [need_dx, need_affine, need_affine]
        chunks = [
            torch.ops.aten.native_batch_norm_backward.default(
                *(_for_torch(t[k]) for t in (g, u)),
                *(weight, None, None, stats[k, 0], stats[k, 1], True, eps, mask),
            )
            for k in range(splits)
        ]
        du = torch.stack([chunk[0].reshape(u.shape[1:]) for chunk in chunks]) if need_dx else u
        dweight, dbias = (
            torch.stack([chunk[i] for chunk in chunks]).sum(0) if need_affine else None
            for i in (1, 2)
        )
    else:
        du = g * scale
        dbias = g.sum((0, 1, 3)) if need_affine else None
        dweight = (g * (u - mean) * rstd).sum((0, 1, 3)) if need_affine else None
    du = act.gate_before(du, xs)
    return (
        _restored(du, x) if need_dx else x.new_empty(0),
        dweight if dweight is not None else stats.new_empty(0),
        dbias if dbias is not None else stats.new_empty(0),
    )


def double_backward(
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
    """Differentiate ``backward`` with respect to dy, x and weight.

    With h = (u - mean) * rstd, and v = ddx (times a'(x) for act_norm), ``backward`` contributes
    ``L = weight * rstd * S + ddweight * sum(g h) + ddbias * sum(g)`` to a loss, where
    ``S = sum(v g) - sum(v) sum(g) / M - sum(v h) sum(g h) / M``. a'' is 0, so::

        dL/dg      = scale * (v - mean(v) - h * mean(v h)) + ddweight * h + ddbias
        dL/dweight = rstd * S
        e          = ddweight * g - scale * (v * mean(g h) + g * mean(v h))
        dL/du      = rstd * (e - mean(e) - h * mean(e h)) - weight * rstd^2 * S * h / M

    In evaluation the statistics are constants: every mean above, and the last term, is 0.
    """
    splits = stats.shape[0]
    v, g = (None if t is None else _chunked(t, x, splits) for t in (ddx, dy))
    terms = v, ddweight, ddbias, g, _chunked(x, x, splits), weight, stats
    act = ActivationConfig(activation, negative_slope, order)
    d_dy, d_x, d_weight = _double_backward(*terms, training, act)
    if not x.numel():  # means of nothing are NaN
        d_weight = torch.zeros_like(d_weight)
    return _restored(d_dy, x).to(dy.dtype), _restored(d_x, x), d_weight


def double_backward_differentiable(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``double_backward`` so that autograd can go through it, for third order and on.

    The statistics are computed again from x, because they are functions of it; only the mask
    comes from the saved ones, being constant almost everywhere.
    """
    ddx, ddweight, ddbias, dy, x, weight, stats, eps, training, *_ = arguments
    act = ActivationConfig(*arguments[-3:])
    splits = stats.shape[0]
    xs = _chunked(x, x, splits)
    v, g = (None if t is None else _chunked(t, x, splits) for t in (ddx, dy))
    mean, rstd, scale, shift = stats.unbind(1)
    if training:
        u = act.before(xs)
        live_mean = u.mean((1, 3), keepdim=True)
        var = (u - live_mean).square().mean((1, 3))
        mean, rstd = live_mean.reshape(scale.shape), (var + eps).rsqrt()
    live = torch.stack((mean, rstd, scale, shift), dim=1)
    terms = v, ddweight, ddbias, g, xs, weight, live
    d_dy, d_x, d_weight = _double_backward(*terms, training, act)
    return _restored(d_dy, x).to(dy.dtype), _restored(d_x, x), d_weight


def _double_backward(
    v: Tensor | None,
    ddweight: Tensor | None,
    ddbias: Tensor | None,
    g: Tensor | None,
    xs: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    training: bool,
    act: ActivationConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate the formulas on tensors of shape (splits, n, C, P)."""
    assert g is not None
    mean, rstd, scale, shift = _per_channel(stats)
    w, p, q = (
        default if vector is None else vector.to(stats.dtype).flatten().view(1, 1, -1, 1)
        for vector, default in ((weight, 1.0), (ddweight, 0.0), (ddbias, 0.0))
    )
    v = torch.zeros_like(xs) if v is None else v
    u = act.before(xs)
    z = torch.addcmul(shift, u - mean, scale)
    g, v = act.gate_after(g, z), act.gate_before(v, xs)
    h = (u - mean) * rstd
    dims = (1, 3)
    if training:
        count = u.shape[1] * u.shape[3]
        mean_v, mean_g = v.mean(dims, keepdim=True), g.mean(dims, keepdim=True)
        mean_vh, mean_gh = (v * h).mean(dims, keepdim=True), (g * h).mean(dims, keepdim=True)
        s = (v * g).sum(dims, keepdim=True) - count * (mean_v * mean_g + mean_vh * mean_gh)
        d_g = w * rstd * (v - mean_v - h * mean_vh) + p * h + q
        e = p * g - w * rstd * (v * mean_gh + g * mean_vh)
        mean_eh = (e * h).mean(dims, keepdim=True)
        d_u = rstd * (e - e.mean(dims, keepdim=True) - h * (mean_eh + w * rstd * s / count))
    else:
        s = (v * g).sum(dims, keepdim=True)
        d_g = w * rstd * v + p * h + q
        d_u = p * rstd * g
    d_g, d_u = act.gate_after(d_g, z), act.gate_before(d_u, xs)
    return d_g, d_u.expand(xs.shape), (rstd * s).sum(0).flatten()


def _to(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # Contiguous: torch's channels-last backward reads another weight than that of a strided vector
    # (seen with torch 2.15 on inputs of shape (N, C, 1)).
    return None if vector is None else vector.to(dtype).flatten().contiguous()


def _follow(running: Tensor | None, batch: Tensor, step: Tensor | float) -> None:
    """Move a running statistic towards this batch's, in the batch's precision."""
    if running is not None:
        running.copy_((1 - step) * running.to(batch.dtype) + step * batch.view_as(running))


def _moments(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, what rounding it left over, and variance, each of shape (splits, 1, C, 1)."""
    dims = (1, 3)
    if u.numel() == 0:
        zeros = u.new_zeros(u.shape[0], 1, u.shape[2], 1)
        return zeros, zeros, zeros
    mean = u.mean(dims, keepdim=True)
    d = u - mean
    rest = d.mean(dims, keepdim=True)
    var = d.square().mean(dims, keepdim=True) - rest.square()
    # Behind an infinite value, as torch: the mean is infinite and its deviations are NaN.
    return mean, torch.where(rest.isnan(), 0.0, rest), torch.where(var < 0, 0.0, var)


def _normalised(
    d: Tensor,
    mean: Tensor,
    rest: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return z of the deviations d = u - mean, and ``stats``."""
    w, b = (
        torch.full_like(mean[:1], default)
        if v is None
        else v.to(d.dtype).flatten().view(1, 1, -1, 1)
        for v, default in ((weight, 1.0), (bias, 0.0))
    )
    rstd = (var + eps).rsqrt()
    scale = w * rstd
    shift = b - rest * scale
    stats = torch.stack([row.flatten(1) for row in (mean, rstd, scale, shift)], dim=1)
    return torch.addcmul(shift, d, scale), stats


def _chunked(t: Tensor, x: Tensor, splits: int) -> Tensor:
    """View t, of x's shape (N, C, ...), as (splits, n, C, P) in x's memory format and arithmetic.

    Contiguous: n images of P positions. Channels-last: n is 1 and P counts rows, so that no stride
    is ambiguous: torch's CPU kernels give wrong gradients if they read one shape as two layouts
    (seen with torch 2.15 on images of height or width 1).
    """
    memory_format = suggest_memory_format(x)
    t = t.to(accumulation_dtype(x)).contiguous(memory_format=memory_format)
    images, channels, positions = x.shape[0] // splits, x.shape[1], math.prod(x.shape[2:])
    if memory_format == torch.contiguous_format:
        return t.reshape(splits, images, channels, positions)
    rows = t.movedim(1, -1).reshape(splits, images * positions, channels)
    return rows.transpose(1, 2).unsqueeze(1)


def _restored(chunks: Tensor, x: Tensor) -> Tensor:
    """Undo ``_chunked``: return chunks in x's shape, dtype and memory format."""
    memory_format = suggest_memory_format(x)
    if memory_format == torch.contiguous_format:
        t = chunks.reshape(x.shape)
    else:
        t = chunks.squeeze(1).transpose(1, 2).reshape(x.shape[0], *x.shape[2:], x.shape[1])
        t = t.movedim(-1, 1)
    result = result_like(x, t)
    # Autograd lets no view that a Function returned be written to. What the third derivative
    # differentiates stays in its graph.
    return result if result.requires_grad else result.detach()


def _for_torch(chunk: Tensor) -> Tensor:
    """Add the fourth dimension that torch's channels-last kernels need to a chunk (n, C, P)."""
    return chunk.unsqueeze(-1)


def _per_channel(stats: Tensor) -> tuple[Tensor, ...]:
    """Return the four rows of stats, each of shape (splits, 1, C, 1)."""
    return tuple(row.unsqueeze(1).unsqueeze(-1) for row in stats.unbind(1))
