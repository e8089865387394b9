"""Projection of images to latent vectors, and interpolation between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ganfast.applications.latent_search import SearchOptions, search
from ganfast.models import GAN, slerp

__all__ = ["Projection", "mix", "project", "ways"]

FEATURES = 0.1  # weight of the discriminator's features beside the pixels


class Projection(NamedTuple):
    """The nearest images that a generator makes to given ones.

    ``latent`` ``[N, *latent]``, the ``images`` made of it ``[N, C, H, W]``, and ``loss`` ``[N]``.
    """

    latent: Tensor
    images: Tensor
    loss: Tensor


def project(
    gan: GAN, images: Tensor, options: SearchOptions | None = None, features: float = FEATURES
) -> Projection:
    """Find the latent vectors whose images come nearest to the given ones.

    The loss of an image is the mean squared difference of its pixels, plus ``features`` times that
    of the discriminator's features over their mean square, plus ``options.prior`` times
    ``log(1 - D)``.

    Args:
        gan: trained, in evaluation mode; its discriminator may have a method ``features``.
        images: ``[N, C, H, W]`` in [-1, 1], of the generator's shape.
        options: of the search.
        features: weight of the discriminator's features.

    Source:
        Zhu et al. 2016, section 3.1, https://arxiv.org/abs/1609.03552; the prior is that of
        Yeh et al. 2017, equation 4, https://arxiv.org/abs/1607.07539

    Examples:
        >>> import torch
        >>> from ganfast.applications.edit import SearchOptions, project
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=16, channels=1, width=4)
        >>> _ = [network.eval().requires_grad_(False) for network in gan[:2]]
        >>> project(gan, torch.zeros(2, 1, 16, 16), SearchOptions(steps=2)).latent.shape
        torch.Size([2, 100, 1, 1])
    """
    given = images.to(next(gan.generator.parameters()).device)
    with torch.no_grad():
        wanted = _features(gan.discriminator, given)
    scale = wanted.square().mean(1).clamp(min=1e-12)

    def distance(made: Tensor, which: Tensor) -> Tensor:
        pixels = (made - given[which]).square().mean((1, 2, 3))
        apart = _features(gan.discriminator, made) - wanted[which]
        return pixels + features * apart.square().mean(1) / scale[which]

    latent, loss = search(gan, distance, len(given), options or SearchOptions())
    with torch.no_grad():
        return Projection(latent, gan.generator(latent), loss)


def ways(gan: GAN, latent: Tensor, stops: int) -> Tensor:
    """Interpolate from each latent vector to the next, and make the images.

    Args:
        gan: in evaluation mode.
        latent: at least two vectors ``[N, *latent]``.
        stops: images of each interpolation, both ends included.

    Returns:
        Images ``[N - 1, stops, C, H, W]``.

    Raises:
        ValueError: fewer than two vectors, or fewer than two stops.

    Examples:
        >>> import torch
        >>> from ganfast.applications.edit import ways
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=16, channels=1, width=4)
        >>> ways(gan, torch.randn(3, *gan.latent), 5).shape
        torch.Size([2, 5, 1, 16, 16])
    """
    if len(latent) < 2 or stops < 2:
        raise ValueError(f"a way needs two ends and two stops, got {len(latent)} and {stops}")
    with torch.no_grad():
        return torch.stack(
            [
                gan.generator(slerp(latent[:-1], latent[1:], float(share)))
                for share in torch.linspace(0, 1, stops)
            ],
            1,
        )


def mix(gan: GAN, latent: Tensor, style: Tensor, share: float) -> Tensor:
    """Move latent vectors by a share of the way to that of another image, and make the images.

    A DCGAN has one latent vector for shape and texture alike: both are mixed.

    Args:
        gan: in evaluation mode.
        latent: of the images to change, ``[N, *latent]``.
        style: of the image whose style they take, ``[1, *latent]``.
        share: from 0, the images as they are, to 1, the style's image.

    Returns:
        Images ``[N, C, H, W]``.

    Raises:
        ValueError: the share is not in [0, 1].

    Source:
        Radford et al. 2015, section 6.1, https://arxiv.org/abs/1511.06434, on the sphere

    Examples:
        >>> import torch
        >>> from ganfast.applications.edit import mix
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=16, channels=1, width=4)
        >>> mix(gan, torch.randn(3, *gan.latent), torch.randn(1, *gan.latent), 0.5).shape
        torch.Size([3, 1, 16, 16])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of the style must be in [0, 1], got {share}")
    with torch.no_grad():
        images: Tensor = gan.generator(slerp(latent, style.expand_as(latent), share))
    return images


def _features(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Return what the discriminator's last layer judges, flat ``[N, F]``."""
    features: Tensor = discriminator.features(images)  # type: ignore[operator]
    return features.flatten(1)
