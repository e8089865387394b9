"""Differentiable augmentation: random changes of images that gradients pass through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ganfast.training.processes import Processes

__all__ = ["augment"]

SHIFT = 1 / 8  # of the side, the largest translation
CUT = 1 / 2  # of the side, of the square that is set to 0
DRAWS = 7


def augment(images: Tensor, processes: Processes | None = None) -> Tensor:
    """Change colours, translate and cut out, each image with random numbers of its own.

    Brightness is moved by up to 0.5, saturation scaled by 0 to 2 and contrast by 0.5 to 1.5; the
    image is moved by up to an eighth of its side, and a square of half its side, whose centre is
    anywhere in the image, is set to 0. The gradient reaches ``images``.

    Args:
        images: ``[N, C, H, W]`` in [-1, 1]; the result may lie outside.
        processes: those that have the other parts of the batch; None for none.

    Returns:
        Images of the same shape, in float32 for half and bfloat16.

    Source:
        Zhao et al. 2020, section 3.2, https://arxiv.org/abs/2006.10738, with the ranges of
        https://github.com/mit-han-lab/data-efficient-gans

    Examples:
        >>> import torch
        >>> from ganfast.training.augmentation import augment
        >>> augment(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """
    processes = processes or Processes()
    whole = torch.rand(len(images) * processes.count, DRAWS, device=images.device)
    draws = processes.part(whole)[..., None, None, None].unbind(1)
    return _cut(_translate(_recolour(images, *draws[:3]), *draws[3:5]), *draws[5:])


def _recolour(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _translate(x: Tensor, down: Tensor, along: Tensor) -> Tensor:
    for dim, draw in ((2, down), (3, along)):
        side = x.shape[dim]
        most = int(side * SHIFT + 0.5)
        first = _whole(draw, 2 * most + 1)  # in the image with margins of 0
        places = first + _count(x, dim)
        margins = (0, 0, most, most) if dim == 2 else (most, most)
        x = functional.pad(x, margins).gather(dim, places.expand(x.shape))
    return x


def _cut(x: Tensor, down: Tensor, along: Tensor) -> Tensor:
    inside = []
    for dim, draw in ((2, down), (3, along)):
        side = x.shape[dim]
        cut = int(side * CUT + 0.5)
        first = _whole(draw, side + 1 - cut % 2) - cut // 2
        places = _count(x, dim)
        inside.append((places >= first) & (places < first + cut))
    return x.masked_fill(inside[0] & inside[1], 0)


def _whole(draw: Tensor, count: int) -> Tensor:
    """Return integers from 0 to ``count - 1`` for numbers in [0, 1)."""
    # A float just below 1 times count may round to count.
    return (draw * count).long().clamp(max=count - 1)


def _count(x: Tensor, dim: int) -> Tensor:
    """Return the places along one dimension of a batch of images, shaped to be compared in it."""
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    return torch.arange(x.shape[dim], device=x.device).view(shape)
