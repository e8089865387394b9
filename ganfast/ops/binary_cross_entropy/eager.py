"""The eager kernels of ``binary_cross_entropy``: torch's own ops, on any device and dtype.

Arguments and results are those of the schemas in this folder's ``__init__``. The backward forms can
be differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional

SMALLEST_DENOMINATOR = 9.999999960041972e-13
"""Of the gradient on probabilities: 1e-12 in float32, which is what torch uses in float64 too."""


def forward(
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Compute the loss with torch's own function."""
    wide = _wide(x)
    u = x.to(wide)
    t = torch.full_like(u, label) if target is None else target.to(wide)
    with torch._C._DisableAutocast():  # which forbids binary_cross_entropy on GPUs
        if from_logits:
            y = functional.binary_cross_entropy_with_logits(
                u, t, _to(weight, wide), pos_weight=_to(pos_weight, wide), reduction=reduction
            )
        else:
            y = functional.binary_cross_entropy(u, t, _to(weight, wide), reduction=reduction)
    return _like(x, y) if reduction == "none" else y.to(x.dtype)


def backward(
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
    wide = _wide(x)
    u = x.to(wide)
    t: Tensor | float = label if target is None else target.to(wide)
    if from_logits:
        positive = t if pos_weight is None else pos_weight.to(wide) * t
        slope = u.sigmoid() * (positive + (1 - t)) - positive
    else:
        slope = (u - t) / ((1 - u) * u).clamp_min(SMALLEST_DENOMINATOR)
    return _like(x, slope * _incoming(dy, x, weight, reduction))


def target_backward(
    dy: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Compute the gradient of the target, which as in torch knows no smallest logarithm."""
    u = x.to(_wide(x))
    if not from_logits:
        slope = (-u).log1p() - u.log()
    elif pos_weight is None:
        slope = -u
    else:
        slope = functional.logsigmoid(-u) - pos_weight.to(u.dtype) * functional.logsigmoid(u)
    return _like(x, slope * _incoming(dy, x, weight, reduction)).to(target.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _like(x: Tensor, y: Tensor) -> Tensor:
    return y.to(x.dtype).contiguous(memory_format=suggest_memory_format(x))


def _incoming(dy: Tensor, x: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Return the gradient that reaches one element, times its weight."""
    dy = dy.to(_wide(x))
    if reduction == "mean":
        dy = dy / x.numel() if x.numel() else dy
    return dy if weight is None else dy * weight.to(dy.dtype)
