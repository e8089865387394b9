"""Random translation of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["shifted"]


def shifted(images: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Move each image by up to ``most`` of its side, repeating its edges; differentiable.

    Args:
        images: ``[N, C, H, W]``.
        most: share of the side; whole pixels are moved.
        rng: on the CPU.

    Source:
        Zhao et al. 2020, section 3.2 (translation), https://arxiv.org/abs/2006.10738

    Examples:
        >>> import torch
        >>> from ganfast.applications.shifts import shifted
        >>> shifted(torch.ones(2, 1, 8, 8), 0.25, torch.Generator().manual_seed(0)).mean()
        tensor(1.)
    """
    count, _, height, width = images.shape
    sides = torch.tensor([width, height])
    furthest = (most * sides).round()
    pixels = torch.rand(count, 2, generator=rng) * (2 * furthest + 1) - furthest - 0.5
    moves = torch.eye(2, 3).repeat(count, 1, 1)
    moves[:, :, 2] = pixels.round().clamp(-furthest, furthest) * 2 / sides
    grid = functional.affine_grid(moves.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="nearest", padding_mode="border", align_corners=False
    )
