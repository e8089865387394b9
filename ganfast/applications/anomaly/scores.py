"""Five anomaly scores, higher for images that are further from normal ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganfast.applications.latent_search import descend
from ganfast.models.dcgan import Discriminator
from ganfast.models.encoder import Encoder
from ganfast.training.progress import Steps, silent

__all__ = [
    "LocalDensity",
    "encoded_directions",
    "encoding_loss",
    "first_features",
    "search_latent",
    "small_pixels",
]

BATCH = 500
FEATURE_WEIGHT = 0.1  # lambda of Schlegl et al. 2017, section 2.2
SEARCH_RATE = 0.05  # of Adam; with 32 steps 0.02 and 0.1 did worse on MNIST's training images
POOLED_SIDE = 8  # of the first layer's map, so that a stroke may lie a pixel or two beside another
PIXEL_SIDE = 16
LEAST_SPACING = 1e-3  # of the mean: one set of equal images must not make scores infinite


def search_latent(
    generator: nn.Module,
    discriminator: Discriminator,
    images: Tensor,
    *,
    latent: tuple[int, ...],
    steps: int,
    seed: int,
    taken: Iterator[int] | None = None,
) -> Tensor:
    """Score images by what the generator cannot make of them (AnoGAN).

    Gradient descent finds a latent vector z whose image is near x; the score is
    ``0.9 |x - G(z)| + 0.1 |f(x) - f(G(z))|``, sums over pixels and over the discriminator's last
    features f. The search starts from one vector for all images, so that a score depends on its
    image alone.

    Args:
        generator: maps ``[N, *latent]`` to images; in evaluation mode.
        discriminator: its features are compared; in evaluation mode.
        images: ``[N, C, H, W]`` in [-1, 1].
        latent: shape of one latent vector.
        steps: of Adam.
        seed: of the random vector.
        taken: shows what is done, see :func:`descend`.

    Returns:
        Scores ``[N]``.

    Source:
        Schlegl et al. 2017, section 2.2, https://arxiv.org/abs/1703.05921
    """
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(1, *latent, generator=rng).expand(len(images), *latent)
    with torch.no_grad():
        wanted = discriminator.features(images)

    def losses(z: Tensor) -> Tensor:
        made = generator(z)
        residual = (images - made).abs().flatten(1).sum(1)
        of_features = (wanted - discriminator.features(made)).abs().flatten(1).sum(1)
        sums: Tensor = (1 - FEATURE_WEIGHT) * residual + FEATURE_WEIGHT * of_features
        return sums

    return descend(losses, start, steps, SEARCH_RATE, taken=taken)[1]


def encoding_loss(
    encoder: nn.Module, generator: nn.Module, discriminator: Discriminator, images: Tensor
) -> Tensor:
    """Return for each image how far its encoding's image lies from it (izi_f of f-AnoGAN).

    The mean squared difference of pixels plus that of the discriminator's last features: the loss
    of the encoder's training, and the score of an image.

    Args:
        encoder: maps images to latent vectors.
        generator: maps them back.
        discriminator: its features are compared.
        images: ``[N, C, H, W]`` in [-1, 1].

    Returns:
        Losses ``[N]``.

    Source:
        Schlegl et al. 2019, section 2.2, https://doi.org/10.1016/j.media.2019.01.010
    """
    made = generator(encoder(images))
    residual = (images - made).square().flatten(1).mean(1)
    wanted, found = discriminator.features(images), discriminator.features(made)
    loss: Tensor = residual + (wanted - found).square().flatten(1).mean(1)
    return loss


def first_features(discriminator: Discriminator, images: Tensor) -> Tensor:
    """Return the discriminator's first map, averaged to 8x8, as vectors ``[N, width * 64]``.

    The first layer detects edges. On images held out from MNIST's training set deeper layers did
    worse, and an untrained first layer did as well: what counts is :class:`LocalDensity`.
    """
    convolution_and_activation = discriminator.main[:2]
    return _pooled(convolution_and_activation(images), POOLED_SIDE)


def encoded_directions(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the encoder's second map, averaged to 8x8, as unit vectors ``[N, width * 128]``.

    On images held out from MNIST's training set (2 and 8 are normal) the directions did better than
    the vectors themselves, the second layer better than the first and the third, the
    encoder better than the discriminator, and each worse without training.
    """
    two_convolutions = encoder.main[:5]
    return functional.normalize(_pooled(two_convolutions(images), POOLED_SIDE))


def small_pixels(images: Tensor) -> Tensor:
    """Return the images averaged to 16x16, as vectors ``[N, C * 256]``, without a network."""
    return _pooled(images, PIXEL_SIDE)


def _pooled(maps: Tensor, side: int) -> Tensor:
    return functional.adaptive_avg_pool2d(maps, min(side, maps.shape[-1])).flatten(1)


class LocalDensity:
    """Score vectors by their distance to known ones, in units of the distances found there.

    The mean distance to the k nearest known vectors, over the mean distance of these to their own k
    nearest. The plain distance rates simple images as normal, since they are near everything: a
    one among twos. The quotient does not.

    Args:
        known: vectors ``[M, F]`` of normal images, more than k.
        k: neighbours.
        progress: shows what is done.

    Source:
        A simplification of the local outlier factor, Breunig et al. 2000, section 4,
        https://doi.org/10.1145/335191.335388: mean distances instead of reachabilities.

    Examples:
        >>> import torch
        >>> from ganfast.applications.anomaly.scores import LocalDensity
        >>> known = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> LocalDensity(known, k=1)(torch.tensor([[0.5], [7.0]]))
        tensor([0.5000, 4.0000])
    """

    def __init__(self, known: Tensor, k: int, progress: Steps = silent) -> None:
        self.known = known
        self.k = k
        parts = known.split(BATCH)
        own = [
            # A known vector is its own nearest.
            torch.cdist(parts[i], known).topk(k + 1, largest=False).values[:, 1:].mean(1)
            for i in progress("distances of normal images", len(parts))
        ]
        spacing = torch.cat(own)
        # More than k equal images have distance 0.
        least = max(LEAST_SPACING * float(spacing.mean()), torch.finfo(known.dtype).eps)
        self._spacing = spacing.clamp_min(least)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return scores ``[N]`` of vectors ``[N, F]``."""
        return torch.cat([self._score(part) for part in vectors.split(BATCH)])

    def _score(self, vectors: Tensor) -> Tensor:
        distances, nearest = torch.cdist(vectors, self.known).topk(self.k, largest=False)
        return distances.mean(1) / self._spacing[nearest].mean(1)
