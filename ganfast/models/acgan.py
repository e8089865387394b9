"""A conditional DCGAN whose discriminator also names the class.

Odena, Olah and Shlens, "Conditional Image Synthesis with Auxiliary Classifier GANs", 2017, section
3 (https://arxiv.org/abs/1610.09585), with the layers of :mod:`ganfast.models.dcgan`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganfast.models._gan import check_channels, check_image_size, check_positive
from ganfast.models.dcgan import IMAGE_SIZES, Discriminator, Generator, first_maps, initialise

__all__ = ["ConditionalDiscriminator", "ConditionalGAN", "ConditionalGenerator", "acgan"]


class ConditionalGAN(NamedTuple):
    """A generator of images of given classes, its discriminator, and the shapes that join them.

    The generator maps noise ``[N, *latent]`` and labels ``[N]`` to images ``[N, *image_shape]`` in
    [-1, 1]; the discriminator maps such images to a logit for being real, ``[N]``, and logits of
    the classes, ``[N, classes]``.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent: tuple[int, ...]
    image_shape: tuple[int, int, int]
    classes: int


class ConditionalGenerator(Generator):
    """Map noise ``[N, latent, 1, 1]`` and labels ``[N]`` to images ``[N, C, size, size]``."""

    def __init__(
        self, image_size: int, channels: int, width: int, latent: int, classes: int
    ) -> None:
        super().__init__(image_size, channels, width, latent + classes, "relu")
        self.classes = classes

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        one_hot = functional.one_hot(labels, self.classes).to(noise.dtype)
        return super().forward(torch.cat([noise, one_hot[:, :, None, None]], 1))


class ConditionalDiscriminator(Discriminator):
    """Map images ``[N, C, size, size]`` to logits: of being real ``[N]``, of classes ``[N, K]``."""

    def __init__(self, image_size: int, channels: int, width: int, classes: int) -> None:
        super().__init__(image_size, channels, width)
        features, side = first_maps(image_size, width)
        self.classifier = nn.Conv2d(features, classes, side)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = self.features(images)
        return self.main[-1](features).flatten(), self.classifier(features).flatten(1)


def acgan(
    image_size: int = 32,
    channels: int = 1,
    width: int = 32,
    latent: int = 100,
    classes: int = 10,
) -> ConditionalGAN:
    """Build a conditional DCGAN with freshly drawn parameters.

    Args:
        image_size: side of the images in pixels: 16, 28, 32, 64, 128 or 256.
        channels: 1 (grey) or 3 (RGB).
        width: feature maps beside the image; doubled each time the side halves.
        latent: length of the noise vector.
        classes: number of classes.

    Raises:
        ValueError: if a value is not one of those allowed.

    Source:
        Odena et al. 2017, section 3, https://arxiv.org/abs/1610.09585

    Examples:
        >>> import torch
        >>> from ganfast.models import acgan
        >>> gan = acgan(image_size=16, width=8, classes=3)
        >>> images = gan.generator(torch.randn(2, *gan.latent), torch.tensor([0, 2]))
        >>> scores, logits = gan.discriminator(images)
        >>> logits.shape
        torch.Size([2, 3])
    """
    check_image_size("acgan", image_size, IMAGE_SIZES)
    check_channels("acgan", channels)
    check_positive("acgan", width=width, latent=latent, classes=classes)
    generator = ConditionalGenerator(image_size, channels, width, latent, classes)
    discriminator = ConditionalDiscriminator(image_size, channels, width, classes)
    for network in (generator, discriminator):
        network.apply(initialise)
    return ConditionalGAN(
        generator, discriminator, (latent, 1, 1), (channels, image_size, image_size), classes
    )
