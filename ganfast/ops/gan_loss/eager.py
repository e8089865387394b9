"""The eager kernels of ``gan_loss``: torch's own ops, on any device and dtype.

Arguments and results are those of the schemas in this folder's ``__init__``. The backward form can
be differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional

SMALLEST_DENOMINATOR = 9.999999960041972e-13  # as in binary_cross_entropy


def forward(
    real: Tensor,
    fake: Tensor | None,
    kind: str,
    real_label: float,
    fake_label: float,
    splits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss and the mean scores."""
    wide = torch.float64 if real.dtype == torch.float64 else torch.float32
    real = real.to(wide)
    if fake is None:
        first, *rest = real.chunk(2) if splits == 2 else (real,)
        second = rest[0] if rest else None
    else:
        first, second = real, fake.to(wide)
    with torch._C._DisableAutocast():  # which forbids binary_cross_entropy on GPUs
        loss = _loss(first, kind, real_label)
        if second is None:
            return loss, real.new_empty(0), real.new_empty(0)
        loss = loss + _loss(second, kind, fake_label)
        return loss, _score(first, kind), _score(second, kind)


def backward(
    dloss: Tensor,
    real: Tensor,
    fake: Tensor | None,
    kind: str,
    real_label: float,
    fake_label: float,
    splits: int,
    need_real: bool,
    need_fake: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the scores that are asked for."""
    dreal = dfake = real.new_empty(0)
    if need_real and splits == 2:
        halves = zip(real.chunk(2), (real_label, fake_label), strict=True)
        dreal = _like(real, torch.cat([_gradient(dloss, x, kind, t) for x, t in halves]))
    elif need_real:
        dreal = _like(real, _gradient(dloss, real, kind, real_label))
    if need_fake and fake is not None:
        dfake = _like(fake, _gradient(dloss, fake, kind, fake_label))
    return dreal, dfake


def _loss(x: Tensor, kind: str, label: float) -> Tensor:
    if kind == "probabilities":
        return functional.binary_cross_entropy(x, torch.full_like(x, label))
    if kind == "logits":
        return functional.binary_cross_entropy_with_logits(x, torch.full_like(x, label))
    if kind == "squared":
        return (x - label).square().mean()
    return (1 - label * x).relu().mean() if kind == "hinge" else (-label * x).mean()


def _score(x: Tensor, kind: str) -> Tensor:
    return (x.sigmoid() if kind == "logits" else x).mean()


def _gradient(dloss: Tensor, x: Tensor, kind: str, label: float) -> Tensor:
    u = x.to(dloss.dtype)
    if kind == "probabilities":
        slope = (u - label) / ((1 - u) * u).clamp_min(SMALLEST_DENOMINATOR)
    elif kind == "logits":
        slope = u.sigmoid() - label
    elif kind == "squared":
        slope = 2 * (u - label)
    elif kind == "hinge":  # NaN keeps its slope, as behind torch's ReLU
        slope = (1 - label * u <= 0).logical_not().to(u.dtype) * -label
    else:
        slope = torch.full_like(u, -label)
    return slope * (dloss / x.numel() if x.numel() else dloss)


def _like(x: Tensor, dx: Tensor) -> Tensor:
    return dx.to(x.dtype).contiguous(memory_format=suggest_memory_format(x))
