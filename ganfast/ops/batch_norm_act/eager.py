"""The eager kernels of ``batch_norm_act``: torch's own ops, on any device and dtype.

Arguments and results are those of the schemas in this folder's ``__init__``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.activation import ACTIVATIONS


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that sums and statistics of ``x`` are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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
    _check(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    dtype = accumulation_dtype(x)
    weight, bias = _to(weight, dtype), _to(bias, dtype)
    act = ACTIVATIONS[activation].apply
    u = x.to(dtype).contiguous(memory_format=suggest_memory_format(x))
    if order == "act_norm":
        u = act(u, negative_slope)
    normalised, stats = [], []
    for chunk in u.chunk(splits) if splits > 1 else (u,):
        # With momentum 1 torch leaves this batch's mean and unbiased variance in the buffers.
        mean, unbiased_var = chunk.new_zeros(x.shape[1]), chunk.new_zeros(x.shape[1])
        if x.numel() == 0:
            z, save_mean, rstd = chunk, mean, unbiased_var
        else:
            z, save_mean, rstd = torch.native_batch_norm(
                chunk, weight, bias, mean, unbiased_var, True, 1.0, eps
            )
        normalised.append(z)
        stats.append(_stats(save_mean, rstd, weight, bias))
        if num_batches_tracked is not None:
            num_batches_tracked.add_(1)
        if x.numel() == 0:  # torch counts an empty batch but learns nothing from it
            continue
        step = 1.0 / num_batches_tracked if momentum is None else momentum  # type: ignore[operator]
        _follow(running_mean, mean, step)
        _follow(running_var, unbiased_var, step)
    z = torch.cat(normalised) if splits > 1 else normalised[0]
    y = act(z, negative_slope) if order == "norm_act" else z
    return _like(y, x), torch.stack(stats)


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
    _check(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    dtype = accumulation_dtype(x)
    weight, bias = _to(weight, dtype), _to(bias, dtype)
    mean = running_mean.to(dtype)
    rstd = (running_var.to(dtype) + eps).rsqrt()
    act = ACTIVATIONS[activation].apply
    u = x.to(dtype).contiguous(memory_format=suggest_memory_format(x))
    if order == "act_norm":
        u = act(u, negative_slope)
    y = torch.native_batch_norm(u, weight, bias, mean, running_var.to(dtype), False, 0.0, eps)[0]
    if order == "norm_act":
        y = act(y, negative_slope)
    return _like(y, x), _stats(mean, rstd, weight, bias).unsqueeze(0)


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
    gate = ACTIVATIONS[activation].gate
    act, gate = ACTIVATIONS[activation].apply, ACTIVATIONS[activation].gate
    mean, rstd, scale, shift = _per_channel(stats, x)
    xs, g = _chunked(x, stats), _chunked(dy, stats)
    if order == "norm_act":
        u, g = xs, gate(g, torch.addcmul(shift, xs, scale), negative_slope)
    else:
        u = act(xs, negative_slope)
    if training and x.numel():
        weight = _to(weight, stats.dtype)
        mask = [need_dx, need_affine, need_affine]
        chunks = [
            torch.ops.aten.native_batch_norm_backward.default(
                g[k], u[k], weight, None, None, stats[k, 0], stats[k, 1], True, eps, mask
            )
            for k in range(stats.shape[0])
        ]
        du = torch.stack([chunk[0] for chunk in chunks]) if need_dx else x.new_empty(0)
        dweight, dbias = (
            torch.stack([chunk[i] for chunk in chunks]).sum(0)
            if need_affine
            else stats.new_empty(0)
            for i in (1, 2)
        )
    else:
        du = g * scale
        dims = _reduced_dims(u)
        dbias = g.sum(dims).sum(0) if need_affine else stats.new_empty(0)
        dweight = (g * (u - mean) * rstd).sum(dims).sum(0) if need_affine else stats.new_empty(0)
    if not need_dx:
        return x.new_empty(0), dweight, dbias
    if order == "act_norm":
        du = gate(du, xs, negative_slope)
    return _like(du.reshape(x.shape), x), dweight, dbias


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
    terms = _chunked(x, stats), _chunked(dy, stats)
    d_dy, d_x, d_weight = _double_backward(
        ddx, ddweight, ddbias, *terms, weight, stats, training, activation, negative_slope, order
    )
    return (
        _like(d_dy.reshape(x.shape), x).to(dy.dtype),
        _like(d_x.reshape(x.shape), x),
        d_weight,
    )


def double_backward_differentiable(
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
    """Compute ``double_backward`` so that autograd can go through it, for third order and on.

    The statistics are computed again from x, because they are functions of it; only the mask
    comes from the saved ones, being constant almost everywhere.
    """
    xs, g = _chunked(x, stats), _chunked(dy, stats)
    mean, rstd, scale, shift = stats.unbind(1)
    if training:
        u = ACTIVATIONS[activation].apply(xs, negative_slope) if order == "act_norm" else xs
        dims = _reduced_dims(u)
        live_mean = u.mean(dims, keepdim=True)
        var = (u - live_mean).square().mean(dims, keepdim=True)
        mean, rstd = (t.reshape(scale.shape) for t in (live_mean, (var + eps).rsqrt()))
    live = torch.stack((mean, rstd, scale, shift), dim=1)
    d_dy, d_x, d_weight = _double_backward(
        ddx, ddweight, ddbias, xs, g, weight, live, training, activation, negative_slope, order
    )
    return d_dy.reshape(x.shape).to(dy.dtype), d_x.reshape(x.shape).to(x.dtype), d_weight


def _double_backward(
    ddx: Tensor | None,
    ddweight: Tensor | None,
    ddbias: Tensor | None,
    xs: Tensor,
    g: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    training: bool,
    activation: str | None,
    negative_slope: float,
    order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    gate = ACTIVATIONS[activation].gate
    channel = (1, 1, -1) + (1,) * (xs.dim() - 3)
    mean, rstd, scale, shift = _per_channel(stats, xs[0])
    w = 1.0 if weight is None else weight.to(stats.dtype).reshape(channel)
    p = 0.0 if ddweight is None else ddweight.to(stats.dtype).reshape(channel)
    q = 0.0 if ddbias is None else ddbias.to(stats.dtype).reshape(channel)
    v = torch.zeros_like(xs) if ddx is None else _chunked(ddx, stats)
    z = xs * scale + shift
    if order == "norm_act":
        u, g = xs, gate(g, z, negative_slope)
    else:
        u, v = ACTIVATIONS[activation].apply(xs, negative_slope), gate(v, xs, negative_slope)
    h = (u - mean) * rstd
    dims = _reduced_dims(u)
    if training:
        count = _values_per_channel(u)
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
    if order == "norm_act":
        d_g = gate(d_g, z, negative_slope)
    else:
        d_u = gate(d_u, xs, negative_slope)
    return d_g, d_u.expand(xs.shape), (rstd * s).sum(0).flatten()


def _check(x: Tensor, **vectors: Tensor | None) -> None:
    """Raise, as torch does, where the dtypes or sizes of the C-sized vectors do not fit x."""
    if not x.is_floating_point():
        raise NotImplementedError(f'"batch_norm_act" not implemented for {x.dtype}')
    wide = accumulation_dtype(x)
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.numel() != x.shape[1]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements not {vector.numel()}")
        if vector.dtype not in (wide, x.dtype):
            raise RuntimeError(
                f"mixed dtype: expected {name} to have dtype {wide} or {x.dtype} for an input of "
                f"{x.dtype}, got {vector.dtype}"
            )


def _to(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if vector is None else vector.to(dtype)


def _like(y: Tensor, x: Tensor) -> Tensor:
    return y.to(x.dtype).contiguous(memory_format=suggest_memory_format(x))


def _follow(running: Tensor | None, batch: Tensor, step: Tensor | float) -> None:
    """Move a running statistic towards this batch's, in the batch's precision."""
    if running is not None:
        running.copy_((1 - step) * running.to(batch.dtype) + step * batch)


def _stats(mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scale = rstd if weight is None else weight * rstd
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.stack((mean, rstd, scale, shift))


def _chunked(x: Tensor, stats: Tensor) -> Tensor:
    """View x of shape (N, C, ...) as (splits, N / splits, C, ...) in the dtype of stats."""
    splits = stats.shape[0]
    return x.to(stats.dtype).reshape(splits, x.shape[0] // splits, *x.shape[1:])


def _per_channel(stats: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Cut stats into its four rows, each shaped to broadcast over x as ``_chunked`` gives it."""
    shape = (stats.shape[0], 1, stats.shape[2]) + (1,) * (x.dim() - 2)
    return tuple(row.reshape(shape) for row in stats.unbind(1))


def _reduced_dims(u: Tensor) -> tuple[int, ...]:
    return (1, *range(3, u.dim()))


def _values_per_channel(u: Tensor) -> int:
    return u[0, :, 0].numel()
