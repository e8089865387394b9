"""Bounds of the rounding errors of the losses, derived from their operands.

Each is ``ROUNDINGS * eps`` of the sum of the absolute values of a formula's terms, see
``exactness``. The formulas are those of ``ganfast.ops.losses.bce`` and
``ganfast.ops.losses.gan``. A logarithm or an exponential counts as one term. Two errors are counted
once instead of ``ROUNDINGS`` times.

- *Label*. A number that the arithmetic's dtype cannot represent is rounded: the derivative in the
  label times ``eps * label``.
- *Underflow*. A sigmoid below ``1 / max`` may be 0, as torch's is: exp(-x) overflows in
  1 / (1 + exp(-x)).

Half types are computed in float32 from the very values, so only their results are rounded to half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganfast.verify.exactness import rounding

__all__ = [
    "cross_entropy_bound", "cross_entropy_second_bounds", "cross_entropy_slope_bound",
    "cross_entropy_target_bound", "gan_loss_bounds", "gan_slope_bound",
]  # fmt: skip

SMALLEST_DENOMINATOR = 1e-12


def cross_entropy_bound(
    x: Tensor,
    target: Tensor | float,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    *,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Bound binary_cross_entropy(_with_logits)."""
    u, t, t_error = _operands(x, target)
    w, p = _weights(weight, pos_weight, u)
    if from_logits:
        log_s = torch.nn.functional.logsigmoid(u).abs()
        size = (1 - t) * u.abs() + (1 + (p - 1).abs() * t) * log_s
        slope_in_t, underflow = u.abs() + (p - 1).abs() * log_s, 1 / _arithmetic(x).max
    else:
        log_x, log_rest = (v.abs().clamp_max(100) for v in (u.log(), (-u).log1p()))
        size = t * log_x + (1 - t) * log_rest
        slope_in_t, underflow = log_x + log_rest, 0.0
    bound = w * (rounding(x.dtype) * size + t_error * slope_in_t + underflow)
    return _reduced(bound, w * size, reduction, x.dtype)


def cross_entropy_slope_bound(
    dy: Tensor,
    x: Tensor,
    target: Tensor | float,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    *,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Bound the gradient of x."""
    u, t, t_error = _operands(x, target)
    w, p = _weights(weight, pos_weight, u)
    if from_logits:
        s = u.sigmoid()
        size, slope_in_t = (p * t + 1 - t) * s + p * t, (p - 1).abs() * s + p
        underflow = 1 / _arithmetic(x).max
    else:
        denominator = (u * (1 - u)).clamp_min(SMALLEST_DENOMINATOR)
        size, slope_in_t = (u - t).abs() / denominator, 1 / denominator
        underflow = 0.0
    bound = w * (rounding(x.dtype) * size + t_error * slope_in_t + underflow)
    return bound * _incoming(dy, x, reduction)


def cross_entropy_target_bound(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    *,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Bound the gradient of a target tensor."""
    u = x.detach().double()
    w, p = _weights(weight, pos_weight, u)
    if not from_logits:
        size = u.log().abs() + (-u).log1p().abs()
    elif pos_weight is None:
        size = u.abs()
    else:
        log_s, log_rest = (torch.nn.functional.logsigmoid(v).abs() for v in (u, -u))
        size = p * log_s + log_rest
    return rounding(x.dtype) * w * size * _incoming(dy, x, reduction)


def cross_entropy_second_bounds(
    x: Tensor, target: Tensor, weight: Tensor | None, *, from_logits: bool
) -> tuple[Tensor, Tensor]:
    """Bound the second derivatives of each loss: in x twice, and in x and target."""
    u, t, _ = _operands(x, target)
    w, _ = _weights(weight, None, u)
    if from_logits:
        s = u.sigmoid()
        return rounding(x.dtype) * w * s * (1 + s), rounding(x.dtype) * w  # 1 - s of a rounded s
    denominator = (u * (1 - u)).clamp_min(SMALLEST_DENOMINATOR)
    size = 1 / denominator + (u - t).abs() * (1 + 2 * u) / denominator.square()
    return rounding(x.dtype) * w * size, rounding(x.dtype) * w / denominator


def gan_loss_bounds(form: str, *labelled: tuple[Tensor, float]) -> tuple[Tensor, ...]:
    """Bound the loss, and the mean score of each tensor of scores that comes with its label."""
    losses, scores = [], []
    for x, label in labelled:
        unit = rounding(x.dtype, x.numel())
        loss, score = _gan_loss_bound(form, x, label), x.double().abs()
        if form == "logits":
            score = x.double().sigmoid()
        losses.append(_reduced(*loss, "mean", x.dtype))
        scores.append(unit * score.mean())
    return torch.stack(losses).sum(0), *scores


def gan_slope_bound(form: str, dloss: Tensor | float, x: Tensor, label: float) -> Tensor:
    """Bound the gradient of one tensor of scores."""
    u, t, t_error = _operands(x, label)
    t = t.abs()
    if form in ("probabilities", "logits"):
        dy = torch.as_tensor(dloss)
        return cross_entropy_slope_bound(
            dy, x, label, from_logits=form == "logits", reduction="mean"
        )
    if form == "squared":
        bound = rounding(x.dtype) * 2 * (u - label).abs() + 2 * t_error
    else:
        bound = rounding(x.dtype) * t
    return bound * abs(float(dloss)) / max(1, x.numel())


def _gan_loss_bound(form: str, x: Tensor, label: float) -> tuple[Tensor, Tensor]:
    """Return the bounds and sizes of each score's loss."""
    u, t, t_error = _operands(x, label)
    unit = rounding(x.dtype)
    if form in ("probabilities", "logits"):
        bound = cross_entropy_bound(x, label, from_logits=form == "logits", reduction="none")
        return bound, bound / unit
    if form == "squared":
        size = (u - t).square()
        return unit * size + 2 * t_error * (u - t).abs(), size
    size = (t * u).abs()  # with labels of 1 and -1, which are exact
    if form == "hinge":
        size = torch.where(1 - t * u < 0, 0.0, 1 + size)
    return unit * size, size


def _operands(x: Tensor, target: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and the target in float64, and what rounding the target may take from it."""
    u = x.detach().double()
    if isinstance(target, Tensor):
        return u, target.detach().double(), torch.zeros_like(u)
    t, arithmetic = torch.full_like(u, target), _arithmetic(x)
    return u, t, arithmetic.eps * t.abs() * (t != t.to(getattr(torch, arithmetic.dtype)))


def _arithmetic(x: Tensor) -> torch.finfo:
    return torch.finfo(torch.promote_types(x.dtype, torch.float32))


def _weights(weight: Tensor | None, pos_weight: Tensor | None, like: Tensor) -> list[Tensor]:
    return [like.new_ones(()) if v is None else v.detach().double() for v in (weight, pos_weight)]


def _reduced(bound: Tensor, size: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """Bound the reduction of losses with these bounds and sizes."""
    if reduction == "none":
        return bound
    of_sum = rounding(dtype, size.numel()) - rounding(dtype)
    bound = bound + of_sum * size
    return bound.mean() if reduction == "mean" else bound.sum()


def _incoming(dy: Tensor, x: Tensor, reduction: str) -> Tensor:
    dy = dy.detach().double().abs()
    return dy / max(1, x.numel()) if reduction == "mean" else dy
