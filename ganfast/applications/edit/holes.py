"""Masks of missing pixels, and the weights of the known pixels beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ganfast.training import DataError
from ganfast.training.data import read_images

__all__ = ["MASKS", "context_weights", "make_mask"]

MASKS = ("center", "random", "left")
MISSING = 0.8  # of the pixels in a random mask, as in the paper's section 4
WINDOW = 7  # pixels, likewise


def make_mask(kind: str, image_size: int, seed: int = 0) -> Tensor:
    """Return which pixels are missing, bool ``[image_size, image_size]``.

    Args:
        kind: "center" (a square of half the side), "random" (80 % of the pixels), "left" (the left
            half), or the path of an image whose white pixels are missing.
        image_size: side in pixels; a file is cropped and resized to it as images are.
        seed: of the random pixels.

    Raises:
        DataError: the file cannot be read, or leaves nothing missing or nothing known.

    Examples:
        >>> from ganfast.applications.edit import make_mask
        >>> make_mask("center", 4).long()
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]])
    """
    missing = torch.zeros(image_size, image_size, dtype=torch.bool)
    if kind == "center":
        inner = slice(image_size // 4, image_size - image_size // 4)
        missing[inner, inner] = True
    elif kind == "left":
        missing[:, : image_size // 2] = True
    elif kind == "random":
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(image_size**2, generator=rng)
        missing.view(-1)[order[: round(MISSING * image_size**2)]] = True
    else:
        path = Path(kind)
        if not path.is_file():
            raise DataError(f"no mask {kind!r}: give {', '.join(MASKS)} or an image file")
        missing = read_images([path], image_size, 1)[0, 0] >= 128
    if missing.all() or not missing.any():
        what = "every pixel, give some black ones" if missing.all() else "no pixel, paint it white"
        raise DataError(f"mask {kind} marks {what}: white is what is to be filled")
    return missing


def context_weights(missing: Tensor, window: int = WINDOW) -> Tensor:
    """Weigh each known pixel by the share of missing ones around it; missing ones weigh 0.

    Args:
        missing: bool ``[H, W]``.
        window: side of the square around a pixel, odd.

    Returns:
        Weights in [0, 1], float ``[H, W]``.

    Source:
        Yeh et al. 2017, equation 2, https://arxiv.org/abs/1607.07539

    Examples:
        >>> import torch
        >>> from ganfast.applications.edit import context_weights
        >>> context_weights(torch.tensor([[False, True, False, False]]), window=3)
        tensor([[1.0000, 0.0000, 0.5000, 0.0000]])
    """
    inside = torch.ones_like(missing, dtype=torch.float32)[None, None]
    hole = missing.float()[None, None]
    sums = [
        functional.avg_pool2d(x, window, 1, window // 2, divisor_override=1) for x in (hole, inside)
    ]
    around = sums[0] / (sums[1] - 1).clamp(min=1)  # a pixel is no neighbour of its own
    return around[0, 0].masked_fill(missing, 0)
