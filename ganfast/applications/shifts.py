"""Random movements of images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["moved", "shifted"]


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
    moves = torch.eye(2, 3).repeat(len(images), 1, 1)
    moves[:, :, 2] = _whole_pixels(images, most, rng)
    return _sampled(images, moves, "nearest")


def moved(
    images: Tensor, most: float, degrees: float, stretch: float, rng: torch.Generator
) -> Tensor:
    """Shift, turn and stretch each image at random, repeating its edges; differentiable.

    Args:
        images: ``[N, C, H, W]``.
        most: share of the side that images are shifted by at most, in whole pixels.
        degrees: that they are turned by at most.
        stretch: share that width and height grow or shrink by at most, each on its own.
        rng: on the CPU.

    Examples:
        >>> import torch
        >>> from ganfast.applications.shifts import moved
        >>> moved(torch.ones(2, 1, 8, 8), 0.1, 15, 0.1, torch.Generator().manual_seed(0)).mean()
        tensor(1.)
    """
    if not (degrees or stretch):
        return shifted(images, most, rng)
    shift = _whole_pixels(images, most, rng)
    turn, *scales = (2 * torch.rand(3, len(images), generator=rng) - 1).unbind()
    angle = turn * math.radians(degrees)
    width, height = (1 + stretch * scale for scale in scales)
    moves = torch.stack(
        [angle.cos() * width, -angle.sin(), shift[:, 0], angle.sin(), angle.cos() * height,
         shift[:, 1]], 1,
    ).reshape(-1, 2, 3)  # fmt: skip
    return _sampled(images, moves, "bilinear")


def _whole_pixels(images: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Draw how far to move each image, ``[N, 2]`` across and down; 2 is the whole side."""
    count, _, height, width = images.shape
    sides = torch.tensor([width, height])
    furthest = (most * sides).round()
    pixels = torch.rand(count, 2, generator=rng) * (2 * furthest + 1) - furthest - 0.5
    return pixels.round().clamp(-furthest, furthest) * 2 / sides


def _sampled(images: Tensor, moves: Tensor, mode: str) -> Tensor:
    grid = functional.affine_grid(moves.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode=mode, padding_mode="border", align_corners=False
    )
