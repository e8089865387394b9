"""Semantic inpainting: fill holes with what a generator would have drawn there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.applications.edit.blending import blend
from ganfast.applications.edit.holes import WINDOW, context_weights
from ganfast.applications.latent_search import SearchOptions, candidates
from ganfast.models import GAN

__all__ = ["Inpainted", "inpaint"]


class Inpainted(NamedTuple):
    """Images whose holes are filled, ``[N, C, H, W]`` in [-1, 1].

    ``generated`` is the whole image found, ``completed`` the given one with the hole taken from it,
    ``blended`` the same without a seam; ``latent`` ``[N, *latent]`` and ``loss`` ``[N]`` belong to
    ``generated``. ``expected`` has the mean of what all searches put into the hole, those of less
    loss counting more: blurred, and nearer to the truth in squared error.
    """

    generated: Tensor
    completed: Tensor
    blended: Tensor
    expected: Tensor
    latent: Tensor
    loss: Tensor


def inpaint(
    gan: GAN,
    images: Tensor,
    missing: Tensor,
    options: SearchOptions | None = None,
    window: int = WINDOW,
) -> Inpainted:
    """Fill the missing pixels of images with those of the nearest image that the generator makes.

    The loss is the weighted absolute difference of the known pixels, those beside the hole counting
    most, plus ``options.prior`` times ``log(1 - D)``. The missing pixels of ``images`` are not
    read.

    Args:
        gan: trained, in evaluation mode.
        images: ``[N, C, H, W]`` in [-1, 1], of the generator's shape.
        missing: bool ``[H, W]``.
        options: of the search.
        window: side of the square in which missing pixels make a known one count.

    Source:
        Yeh et al. 2017, section 3, https://arxiv.org/abs/1607.07539, with a normal latent vector
        held in a ball for their uniform one held in a cube.

    Examples:
        >>> import torch
        >>> from ganfast.applications.edit import SearchOptions, inpaint, make_mask
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=16, channels=1, width=4)
        >>> _ = [network.eval().requires_grad_(False) for network in gan[:2]]
        >>> images = torch.zeros(2, 1, 16, 16)
        >>> inpaint(gan, images, make_mask("left", 16), SearchOptions(steps=2)).blended.shape
        torch.Size([2, 1, 16, 16])
    """
    device = next(gan.generator.parameters()).device
    missing = missing.to(device)
    given = images.to(device).masked_fill(missing, 0)
    weights = context_weights(missing, window)

    def context(made: Tensor, which: Tensor) -> Tensor:
        return ((made - given[which]).abs() * weights).sum((1, 2, 3))

    latents, losses = candidates(gan, context, len(given), options or SearchOptions())
    best = losses.argmin(1)
    each = torch.arange(len(given), device=device)
    with torch.no_grad():
        every = torch.stack([gan.generator(z) for z in latents.unbind(1)], 1)
    generated = every[each, best]
    completed = generated.where(missing, given)
    mean = (every * _shares(losses)[..., None, None, None]).sum(1)
    return Inpainted(
        generated, completed, blend(given, generated, missing), mean.where(missing, given),
        latents[each, best], losses[each, best],
    )  # fmt: skip


def _shares(losses: Tensor) -> Tensor:
    """Weigh an image's searches ``[N, restarts]`` by exp(-loss / scale).

    The scale is the least loss, so that it follows what the generator can make at all: the best of
    five shares of it on training images of MNIST.
    """
    least = losses.min(1, keepdim=True).values
    scale = least.abs().clamp(min=torch.finfo(losses.dtype).tiny)
    return (-(losses - least) / scale).softmax(1)
