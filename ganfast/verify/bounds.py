"""Bounds of the rounding errors of ``batch_norm_act``, derived from its operands.

Notation as in ``ganfast.ops.batch_norm_act``, with ``h = (u - mean) * rstd``. A formula adds up
terms, and each term reaches the result through a few roundings, so its error is at most
``ROUNDINGS * eps`` of the sum of the terms' absolute values, their *size*:

- z: ``|scale| * (|d| + std) + |bias|`` with ``d = u - mean``. Values are centred before they are
  scaled, so no ``|mean|`` enters; ``std`` stands for the error of the mean, whose sum adds up
  deviations from a centre near it. The relative error of rstd is one of the roundings of ``d``.
- running_mean: ``|mean| + std`` and ``|running_mean|``, by momentum. running_var likewise.
- dbias: ``sum(|g|)``. dweight: ``sum(|g h|)``.
- dx: ``|scale| * (|g| + mean(|g|) + |h| * mean(|g h|))``.
- The double backward: the formulas beside ``reference.double_backward``, all terms positive.

Three further errors are known in advance, and counted once instead of ``ROUNDINGS`` times.

- *Stored mean*. Backward takes deviations from the mean as it is stored, rounded: h is off by
  ``eps * |mean| * rstd`` in one direction. Forward makes up for it, except for the rounding of the
  deviations themselves, which are up to ``eps * |mean|`` larger.
- *Rounded inputs*. ``act_norm`` rounds ``u = slope * x`` before the mean is subtracted, unless the
  slope is 0 or 1. The reference in float64 does not centre: ``|u| + |mean|`` enters at float64's
  eps.
- *Kink*. If z is within its own bound of a kink, the slopes of both sides are right: g may be off
  by ``|dy|`` times their difference there, and nowhere else.

The last two change g and h. A size is a polynomial ``F`` of ``|g|``, ``|h|`` and ``|ddx|`` with
coefficients that are not negative, so errors of its arguments change the result by at most
``F(|g| + error of g, |h| + error of h, ...) - F(|g|, |h|, ...)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.instancenorm import _InstanceNorm

from ganfast.activations import ActivationConfig
from ganfast.verify.exactness import rounding

__all__ = ["NormBounds", "layer_bounds", "penalty_bounds"]

REFERENCE_EPS = torch.finfo(torch.float64).eps


class NormBounds:
    """Bounds for the results of one call of ``batch_norm_act``, each of its result's shape.

    Args:
        x: the input.
        weight: of shape (C,), or None.
        bias: as weight.
        act: the activation, its negative_slope and the order.
        eps: added to the variance.
        splits: number of chunks of the batch.
        running: mean and variance that evaluation normalises with; None in training.
        stats: exact rows mean, rstd, scale and shift, of shape (splits, 4, C), if backward is given
            them; replaces weight, bias, eps and running.
        training: whether gradients flow through the statistics; by default, if there is no running.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        act: tuple[str | None, float, str],
        *,
        eps: float = 1e-5,
        splits: int = 1,
        running: tuple[Tensor, Tensor] | None = None,
        stats: Tensor | None = None,
        training: bool | None = None,
    ) -> None:
        self.act = ActivationConfig(*act)
        self.shape, self.splits = x.shape, splits
        self.training = running is None if training is None else training
        arithmetic = torch.finfo(torch.promote_types(x.dtype, torch.float32))
        self.eps, self.tiny = arithmetic.eps, arithmetic.eps * arithmetic.smallest_normal
        self.values = max(1, x.numel() // max(1, splits * x.shape[1]))
        self.unit = rounding(x.dtype, self.values * splits)

        xs = self._chunks(x)
        u = self.act.before(xs)
        self.slope_of_x = self.act.gate_before(torch.ones_like(xs), xs).abs()
        of_batch = running is None and stats is None
        if stats is not None:
            mean, self.rstd, scale, shift = (row.double()[..., None] for row in stats.unbind(1))
        else:
            if running is not None:
                mean, var = (_column(t, xs) for t in running)
            else:
                mean = _mean(u)
                var = _mean((u - mean).square())
            self.rstd = (var + eps).rsqrt()
            scale, shift = _column(weight, xs, 1.0) * self.rstd, _column(bias, xs)
        d = u - mean
        self.scale, self.shift, self.mean = scale.abs(), shift.abs(), mean.abs()
        self.z = d * scale + shift

        u_error = 2 * REFERENCE_EPS * (u.abs() + self.mean)
        multiplied = (self.slope_of_x != 0) & (self.slope_of_x != 1)
        u_error = u_error + torch.where(multiplied, self.eps * u.abs(), 0.0)
        zero = torch.zeros_like(mean)
        self.d = d.abs() + (self.eps * self.mean if of_batch else 0.0)
        self.var_size = _mean(self.d.square()) if of_batch else zero
        std, u_mean_error = self.var_size.sqrt(), _mean(u_error) if of_batch else zero
        of_var = 2 * _mean(self.d * u_error) if of_batch else zero
        self.mean_error = self.unit * std + u_mean_error
        self.stored_mean_error = self.mean_error + (self.eps * self.mean if of_batch else 0.0)
        self.var_error = self.unit * self.var_size + of_var
        of_rstd = self.rstd.square() * of_var / 2
        self.rstd_error = self.rstd * (self.unit + of_rstd)
        self.z_error = (
            self.unit * (self.scale * (self.d + std) + self.shift)
            + self.scale * (u_error + u_mean_error + self.d * of_rstd)
            + self.tiny * (1 + self.d)  # scale may be subnormal
        )
        self.h = self.d * self.rstd
        self.h_error = self.rstd * (self.stored_mean_error + u_error)
        self._set_slope_of_z()

    def _set_slope_of_z(self) -> None:
        """Set the largest slope that a(z) may have within z's bound, and how far it may be off."""
        self.slope_of_z = self.act.gate_after(torch.ones_like(self.z), self.z).abs()
        self.jump = torch.zeros_like(self.z)
        for kink in self.act.row.kinks if self.act.order == "norm_act" else ():
            sides = self.z.new_tensor((math.nextafter(kink, -1e9), math.nextafter(kink, 1e9)))
            below, above = self.act.gate_after(torch.ones_like(sides), sides)
            near = ((self.z - kink).abs() <= self.z_error) & self.z.isfinite()
            self.jump = torch.where(near, (above - below).abs(), self.jump)
            steepest = torch.maximum(above.abs(), below.abs())
            self.slope_of_z = torch.where(near, steepest, self.slope_of_z)

    def y(self) -> Tensor:
        """Bound y."""
        error = _gated(self.z_error, self.slope_of_z)
        if self.act.order == "norm_act":
            error = error + self.eps * self.act.after(self.z).abs()
        return self._restored(error)

    def stats(self) -> Tensor:
        """Bound mean, rstd, scale and shift, of shape (splits, 4, C)."""
        scale = self.scale * self.rstd_error / self.rstd
        shift = self.unit * self.shift + self.scale * self.stored_mean_error
        rows = (self.stored_mean_error, self.rstd_error, scale, shift)
        return torch.cat(torch.broadcast_tensors(*rows), -1).transpose(1, 2)

    def running(
        self, mean: Tensor | None, var: Tensor | None, momentum: float | None, count: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Bound the running statistics that follow these, after ``count`` batches."""
        bounds: list[Tensor | None] = []
        for buffer, sizes, errors in self._statistics(mean, var):
            if buffer is None:
                bounds.append(None)
                continue
            size, bound = buffer.double().abs(), torch.zeros_like(buffer, dtype=torch.float64)
            for k in range(self.splits):
                step = 1 / (count + k + 1) if momentum is None else momentum
                # Between two chunks the buffer holds the statistic in its own dtype.
                bound = bound + (torch.finfo(buffer.dtype).eps * size if k else 0.0)
                size = abs(1 - step) * size + abs(step) * sizes[k, :, 0]
                bound = abs(1 - step) * bound + self.unit * size + abs(step) * errors[k, :, 0]
            bounds.append(bound)
        return bounds[0], bounds[1]

    def running_average(
        self, mean: Tensor | None, var: Tensor | None, momentum: float
    ) -> Iterator[Tensor | None]:
        """Bound running statistics that follow the average over all splits, as instances' do."""
        for buffer, sizes, errors in self._statistics(mean, var):
            if buffer is None:
                yield None
                continue
            own, size, error = abs(momentum), sizes.mean(0)[:, 0], errors.mean(0)[:, 0]
            size = abs(1 - momentum) * buffer.double().abs() + own * size
            yield self.unit * size + own * error

    def _statistics(
        self, mean: Tensor | None, var: Tensor | None
    ) -> Iterator[tuple[Tensor | None, Tensor, Tensor]]:
        """Pair each buffer with the sizes of the batch's own statistics and their errors."""
        correction = self.values / max(1, self.values - 1)
        yield mean, self.mean + self.var_size.sqrt(), self.mean_error
        yield var, self.var_size * correction, self.var_error * correction

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bound dx, dweight and dbias."""
        g, g_error = self._gradient(dy)

        def dx(g: Tensor, h: Tensor) -> Tensor:
            return self.scale * (g + _mean(g) + h * _mean(g * h) if self.training else g)

        exact, errors = (g, self.h), (g_error, self.h_error)
        of_dx = self._bound(dx, exact, errors) + self.tiny * (1 + g)
        if self.training:
            of_dx = of_dx + self.tiny * self.d
        return (
            self._restored(_gated(of_dx, self.slope_of_x)),
            self._bound(lambda g, h: (g * h).sum((0, 2)), exact, errors),
            self._bound(lambda g, h: g.sum((0, 2)), exact, errors),
        )

    def double_backward(
        self,
        ddx: Tensor | None,
        ddweight: Tensor | None,
        ddbias: Tensor | None,
        dy: Tensor,
        ddx_error: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bound d_dy, d_x and d_weight; ``ddx_error`` is an error that ddx comes with."""
        g, g_error = self._gradient(dy)
        v, v_error = (
            torch.zeros_like(g) if t is None else _gated(self._chunks(t).abs(), self.slope_of_x)
            for t in (ddx, ddx_error)
        )
        p, q = (_column(t, g).abs() for t in (ddweight, ddbias))
        scale, rstd = self.scale, self.rstd

        def product(g: Tensor, h: Tensor, v: Tensor) -> Tensor:  # S / M of the derivation
            if not self.training:
                return _mean(v * g)
            return _mean(v * g) + _mean(v) * _mean(g) + _mean(v * h) * _mean(g * h)

        def d_g(g: Tensor, h: Tensor, v: Tensor) -> Tensor:
            of_v = v + _mean(v) + h * _mean(v * h) if self.training else v
            return scale * of_v + p * h + q

        def d_u(g: Tensor, h: Tensor, v: Tensor) -> Tensor:
            if not self.training:
                return rstd * p * g
            e = p * g + scale * (v * _mean(g * h) + g * _mean(v * h))
            return rstd * (e + _mean(e) + h * (_mean(e * h) + scale * product(g, h, v)))

        def d_weight(g: Tensor, h: Tensor, v: Tensor) -> Tensor:
            return (rstd * product(g, h, v)).sum(0).flatten() * self.values

        exact, errors = (g, self.h, v), (g_error, self.h_error, v_error)
        underflow = self.tiny * (1 + g + v + self.d)
        of_d_g = _gated(self._bound(d_g, exact, errors) + underflow, self.slope_of_z)
        of_d_g = of_d_g + _gated(d_g(*exact), self.jump)
        return (
            self._restored(of_d_g),
            self._restored(_gated(self._bound(d_u, exact, errors) + underflow, self.slope_of_x)),
            self._bound(d_weight, exact, errors),
        )

    def _bound(
        self, size: Callable[..., Tensor], exact: tuple[Tensor, ...], errors: tuple[Tensor, ...]
    ) -> Tensor:
        """Bound a result by the size of its terms and by errors of their factors."""
        terms = size(*exact)
        with_errors = size(*(t + error for t, error in zip(exact, errors, strict=True)))
        return self.unit * terms + (with_errors - terms)

    def _gradient(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Return |g| and what it may be off by."""
        g = self._chunks(dy)
        return self.act.gate_after(g, self.z).abs(), _gated(g.abs(), self.jump)

    def _chunks(self, t: Tensor) -> Tensor:
        """Return t in float64, of shape (splits, C, values of a channel); a 0 if t is empty."""
        if not t.numel():
            return t.new_zeros(self.splits, self.shape[1], 1, dtype=torch.float64)
        t = t.double().contiguous().reshape(self.splits, -1, self.shape[1], *self.shape[2:])
        return t.transpose(1, 2).flatten(2)

    def _restored(self, chunks: Tensor) -> Tensor:
        """Return per-value bounds in x's shape."""
        if not self.shape.numel():
            return chunks.new_zeros(self.shape)
        images = self.shape[0] // self.splits
        shape = (self.splits, self.shape[1], images, *self.shape[2:])
        return chunks.expand(-1, -1, self.values).reshape(shape).transpose(1, 2).reshape(self.shape)


def layer_bounds(layer: Any, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Bound every result of ``exactness.run`` by its name, before the layer is run."""
    bounds = _of_layer(layer, x)
    dx, dweight, dbias = bounds.backward(dy)
    found: dict[str, Tensor | None] = {
        "y": bounds.y(), "dx": dx, "dweight": dweight, "dbias": dbias,
    }  # fmt: skip
    mean, var = layer.running_mean, layer.running_var
    if mean is not None and layer.training and isinstance(layer, _InstanceNorm):
        mean, var = bounds.running_average(mean, var, layer.momentum or 0.0)
        found |= {"running_mean": mean, "running_var": var}
    elif mean is not None and layer.training:
        count = int(layer.num_batches_tracked)
        mean, var = bounds.running(mean, var, layer.momentum, count)
        found |= {"running_mean": mean, "running_var": var}
    elif mean is not None:
        found |= {"running_mean": torch.zeros_like(mean), "running_var": torch.zeros_like(var)}
    return {name: bound for name, bound in found.items() if bound is not None}


def penalty_bounds(layer: Any, x: Tensor, dy: Tensor, dx: Tensor) -> dict[str, Tensor]:
    """Bound the gradients of ``dx.square().sum()``, with dx the layer's input gradient."""
    bounds = _of_layer(layer, x)
    error = bounds.backward(dy)[0] + torch.finfo(x.dtype).eps * dx.abs()
    found = bounds.double_backward(2 * dx, None, None, dy, 2 * error)
    return dict(zip(("d_dy", "d_x", "d_weight"), found, strict=True))


def _of_layer(layer: Any, x: Tensor) -> NormBounds:
    running = None
    if not layer.training and layer.running_mean is not None:
        running = layer.running_mean, layer.running_var
    splits = getattr(layer, "splits", 1)
    if isinstance(layer, _InstanceNorm) and running is None:
        splits = max(1, x.shape[0])
    act, options = ActivationConfig.of(layer), {"eps": layer.eps, "running": running}
    return NormBounds(x, layer.weight, layer.bias, act, splits=splits, **options)


def _gated(t: Tensor, slope: Tensor) -> Tensor:
    """Multiply by an activation's slope; a slope of 0 takes infinity and NaN away too."""
    return torch.where(slope == 0, 0.0, t * slope)


def _mean(t: Tensor) -> Tensor:
    return t.mean(-1, keepdim=True)


def _column(vector: Tensor | None, chunks: Tensor, default: float = 0.0) -> Tensor:
    if vector is None:
        return chunks.new_full((1, 1, 1), default)
    return vector.detach().double().reshape(1, -1, 1)
