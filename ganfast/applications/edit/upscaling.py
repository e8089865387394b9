"""Super-resolution: find the generator's image that, made small, is the given one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ganfast.applications.latent_search import SearchOptions, search
from ganfast.models import GAN

__all__ = ["Upscaled", "resize", "upscale"]


class Upscaled(NamedTuple):
    """Images of the generator's size, ``[N, C, H, W]`` in [-1, 1], for small ones.

    ``generated`` is what the generator makes, ``corrected`` the same plus what it lacks of the
    small image; ``latent`` ``[N, *latent]`` and ``loss`` ``[N]`` belong to ``generated``.
    """

    generated: Tensor
    corrected: Tensor
    latent: Tensor
    loss: Tensor


def resize(images: Tensor, side: int) -> Tensor:
    """Resize images ``[N, C, H, W]`` to a side by the bicubic filter, as PIL does."""
    return functional.interpolate(images, (side, side), mode="bicubic", antialias=True)


def upscale(gan: GAN, small: Tensor, options: SearchOptions | None = None) -> Upscaled:
    """Find images that the generator makes and whose reduced copies are the given ones.

    The loss of an image is the mean squared difference of its reduced copy from the small image,
    plus ``options.prior`` times ``log(1 - D)``. One step of iterative back-projection then adds
    what is left of that difference, enlarged.

    Args:
        gan: trained, in evaluation mode.
        small: square images ``[N, C, h, h]`` in [-1, 1], of fewer pixels than the generator's.
        options: of the search.

    Raises:
        ValueError: the images are not square, or not smaller than the generator's.

    Source:
        Menon et al. 2020, section 3.2, https://arxiv.org/abs/2003.03808; Irani and Peleg 1991,
        section 3, https://doi.org/10.1016/1049-9652(91)90045-L

    Examples:
        >>> import torch
        >>> from ganfast.applications.edit import SearchOptions, upscale
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=16, channels=1, width=4)
        >>> _ = [network.eval().requires_grad_(False) for network in gan[:2]]
        >>> upscale(gan, torch.zeros(2, 1, 4, 4), SearchOptions(steps=2)).corrected.shape
        torch.Size([2, 1, 16, 16])
    """
    height, side = small.shape[-2:]
    whole = gan.image_shape[-1]
    if height != side or side >= whole:
        raise ValueError(
            f"small images must be square and have a side below {whole} pixels, got {height}x{side}"
        )
    small = small.to(next(gan.generator.parameters()).device)

    def distance(made: Tensor, which: Tensor) -> Tensor:
        return (resize(made, side) - small[which]).square().mean((1, 2, 3))

    latent, loss = search(gan, distance, len(small), options or SearchOptions())
    with torch.no_grad():
        generated = gan.generator(latent)
        lacking = resize(small - resize(generated, side), whole)
    return Upscaled(generated, (generated + lacking).clamp(-1, 1), latent, loss)
