"""Interpolation between latent vectors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["slerp"]


def slerp(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """Interpolate along the great circle between latent vectors.

    Normal vectors in many dimensions lie near a sphere, and a straight line between two of them
    leaves it; their lengths are interpolated separately.

    Args:
        start: vectors ``[N, ...]``.
        end: of the same shape.
        share: position between start and end, 0 to 1; a number, or one for each vector ``[N]``.

    Raises:
        ValueError: the shapes differ.

    Source:
        White 2016, section 2.1, https://arxiv.org/abs/1609.04468

    Examples:
        >>> import torch
        >>> from ganfast.models import slerp
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
        tensor([[0.7071, 0.7071]])
    """
    if start.shape != end.shape:
        raise ValueError(
            f"slerp needs two ends of one shape, got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device).reshape(-1, 1)
    a, b = start.flatten(1), end.flatten(1)
    lengths = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    cosine = ((a / lengths[0]) * (b / lengths[1])).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    straight = angle.sin() < 1e-4  # parallel: the circle is not determined
    sine = angle.sin().where(~straight, 1.0)
    from_a = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    from_b = torch.where(straight, share, (share * angle).sin() / sine)
    direction = from_a * a / lengths[0] + from_b * b / lengths[1]
    length = torch.lerp(lengths[0], lengths[1], share)
    between: Tensor = direction * length
    return between.reshape(start.shape)
