"""The eager kernels of the losses: torch's own ops, on any device and dtype.

The signatures of the first five functions are those of the ops; their backward forms can be
differentiated again. ``discriminator_loss`` and ``mean_loss`` are what a training script writes:
``ganfast bench`` times the kernels against them, ``ganfast verify`` evaluates them in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ganfast.ops.tensors import accumulation_dtype, check_floating_point, result_like

SMALLEST_DENOMINATOR = 9.999999960041972e-13
"""In the gradient of probabilities: 1e-12 in float32, which torch uses in float64 too."""


def binary_cross_entropy(
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Compute the loss with torch's own function."""
    u = _wide("binary_cross_entropy", x)
    t = torch.full_like(u, label) if target is None else target.to(u.dtype)
    weight, pos_weight = (None if w is None else w.to(u.dtype) for w in (weight, pos_weight))
    with torch._C._DisableAutocast():  # which forbids binary_cross_entropy on GPUs
        if from_logits:
            y = functional.binary_cross_entropy_with_logits(
                u, t, weight, pos_weight=pos_weight, reduction=reduction
            )
        else:
            y = functional.binary_cross_entropy(u, t, weight, reduction=reduction)
    return result_like(x, y) if reduction == "none" else y.to(x.dtype)


def binary_cross_entropy_backward(
    dy: Tensor,
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Compute dx."""
    u = _wide("binary_cross_entropy", x)
    t = label if target is None else target.to(u.dtype)
    p = 1.0 if pos_weight is None else pos_weight.to(u.dtype)
    slope = _slope(u, "logits" if from_logits else "probabilities", t, p)
    return result_like(x, slope * _incoming(dy, u, weight, reduction))


def binary_cross_entropy_target_backward(
    dy: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Compute the gradient of the target; as in torch, its logarithms are not clamped."""
    u = _wide("binary_cross_entropy", x)
    if not from_logits:
        slope = (-u).log1p() - u.log()
    elif pos_weight is None:
        slope = -u
    else:
        slope = functional.logsigmoid(-u) - pos_weight.to(u.dtype) * functional.logsigmoid(u)
    return result_like(x, slope * _incoming(dy, u, weight, reduction)).to(target.dtype)


def gan_loss(
    real: Tensor,
    fake: Tensor | None,
    form: str,
    real_label: float,
    fake_label: float,
    splits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss and the mean scores."""
    real = _wide("gan_loss", real)
    if splits == 2:
        real, fake = real.chunk(2)
    with torch._C._DisableAutocast():  # which forbids binary_cross_entropy on GPUs
        if fake is None:
            loss = mean_loss(real, form, real_label)
            return loss, real.new_empty(0), real.new_empty(0)
        return discriminator_loss(real, fake.to(real.dtype), form, real_label, fake_label)


def gan_loss_backward(
    dloss: Tensor,
    real: Tensor,
    fake: Tensor | None,
    form: str,
    real_label: float,
    fake_label: float,
    splits: int,
    need_real: bool,
    need_fake: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the scores that are asked for."""
    dreal = dfake = real.new_empty(0)
    if need_real:
        parts = real.chunk(2) if splits == 2 else (real,)
        labelled = zip(parts, (real_label, fake_label), strict=False)
        gradients = [_gan_gradient(dloss, x, form, label) for x, label in labelled]
        dreal = result_like(real, torch.cat(gradients) if splits == 2 else gradients[0])
    if need_fake and fake is not None:
        dfake = result_like(fake, _gan_gradient(dloss, fake, form, fake_label))
    return dreal, dfake


def discriminator_loss(
    real: Tensor, fake: Tensor, form: str, real_label: float, fake_label: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of real and of generated scores, and their means."""
    loss = mean_loss(real, form, real_label) + mean_loss(fake, form, fake_label)
    real_score, fake_score = (x.sigmoid() if form == "logits" else x for x in (real, fake))
    return loss, real_score.mean(), fake_score.mean()


def mean_loss(x: Tensor, form: str, label: float) -> Tensor:
    """Return the mean of a form of the loss, of scores with one label."""
    if form == "probabilities":
        return functional.binary_cross_entropy(x, torch.full_like(x, label))
    if form == "logits":
        return functional.binary_cross_entropy_with_logits(x, torch.full_like(x, label))
    if form == "squared":
        return (x - label).square().mean()
    return (1 - label * x).relu().mean() if form == "hinge" else (-label * x).mean()


def _slope(
    x: Tensor, form: str, t: Tensor | float, pos_weight: Tensor | float = 1.0
) -> Tensor | float:
    """Return the derivative of a form of the loss, of each score with target t."""
    if form == "probabilities":
        return (x - t) / ((1 - x) * x).clamp_min(SMALLEST_DENOMINATOR)
    if form == "logits":
        positive = pos_weight * t
        return x.sigmoid() * (positive + (1 - t)) - positive
    if form == "squared":
        return 2 * (x - t)
    if form == "hinge":  # NaN keeps its slope, as behind torch's ReLU
        return (1 - t * x <= 0).logical_not().to(x.dtype) * -t
    return -t


def _gan_gradient(dloss: Tensor, x: Tensor, form: str, label: float) -> Tensor:
    u = x.to(dloss.dtype)
    return _slope(u, form, label) * _incoming(dloss, u, None, "mean").expand(x.shape)


def _incoming(dy: Tensor, u: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Return the gradient that reaches one element, times its weight."""
    dy = dy.to(u.dtype)
    if reduction == "mean" and u.numel():
        dy = dy / u.numel()
    return dy if weight is None else dy * weight.to(dy.dtype)


def _wide(op: str, x: Tensor) -> Tensor:
    check_floating_point(op, x)
    return x.to(accumulation_dtype(x))
