"""A semi-supervised GAN: a discriminator with one output for each class.

Salimans et al., "Improved Techniques for Training GANs", 2016, section 5
(https://arxiv.org/abs/1606.03498), with the generator of :mod:`ganfast.models.dcgan`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ganfast.models._gan import check_channels, check_image_size, check_positive
from ganfast.models.dcgan import IMAGE_SIZES, NEGATIVE_SLOPE, Generator, initialise
from ganfast.nn import BatchNorm2d

__all__ = ["Classifier", "SemiSupervisedGAN", "sgan"]

FEATURES = 256


class SemiSupervisedGAN(NamedTuple):
    """A generator, a classifier that is also its discriminator, and the shapes that join them.

    The generator maps noise ``[N, *latent]`` to images ``[N, *image_shape]`` in [-1, 1]; the
    classifier maps such images to logits of the classes, ``[N, classes]``.

    Examples:
        >>> from ganfast.models import sgan
        >>> gan = sgan(image_size=16, width=8, classes=3)
        >>> gan.image_shape, gan.classes
        ((1, 16, 16), 3)
    """

    generator: nn.Module
    classifier: "Classifier"
    latent: tuple[int, ...]
    image_shape: tuple[int, int, int]
    classes: int


class _Noise(nn.Module):
    """Add Gaussian noise in training."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and self.deviation):
            return images
        return images + self.deviation * torch.randn_like(images)

    def extra_repr(self) -> str:
        return f"deviation={self.deviation}"


class Classifier(nn.Module):
    """Map images ``[N, C, size, size]`` to logits of the classes, ``[N, K]``.

    The logit of an image being real is the logarithm of the sum of their exponentials: with
    ``Z = sum(exp(logits))``, ``D(x) = Z / (Z + 1) = sigmoid(logsumexp(logits))``, which is a
    softmax over K + 1 classes with the last logit, that of "generated", fixed to 0.

    Max-pooled convolutions, because they classify digits better from few labels than strided ones;
    no batch normalisation after the features, since it would hide the means to be matched.
    """

    def __init__(
        self, image_size: int, channels: int, width: int, classes: int, noise: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            _Noise(noise),
            nn.Conv2d(channels, width, 5, padding=2),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            nn.MaxPool2d(2),
        ]
        features = width
        while features < width * image_size // 8:
            layers += [
                nn.Conv2d(features, 2 * features, 3, padding=1, bias=False),
                BatchNorm2d(2 * features, activation="leaky_relu", negative_slope=NEGATIVE_SLOPE),
                nn.MaxPool2d(2),
            ]
            features *= 2
        layers += [
            nn.Flatten(),
            nn.Linear(features * 16, FEATURES),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last layer, ``[N, 256]``."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


def sgan(
    image_size: int = 16,
    channels: int = 1,
    width: int = 16,
    latent: int = 100,
    classes: int = 10,
    noise: float = 0.2,
) -> SemiSupervisedGAN:
    """Build a generator and a classifier with freshly drawn parameters.

    Args:
        image_size: side of the images in pixels: 16, 32, 64, 128 or 256.
        channels: 1 (grey) or 3 (RGB).
        width: feature maps of both networks beside the image, doubled each time the side halves.
        latent: length of the noise vector.
        classes: number of classes.
        noise: standard deviation of the noise that the classifier adds to images in training.

    Raises:
        ValueError: if a value is not one of those allowed.

    Source:
        Salimans et al. 2016, section 5, https://arxiv.org/abs/1606.03498

    Examples:
        >>> import torch
        >>> from ganfast.models import sgan
        >>> gan = sgan(image_size=16, width=8, classes=3)
        >>> images = gan.generator(torch.randn(2, *gan.latent))
        >>> gan.classifier(images).shape, gan.classifier.features(images).shape
        (torch.Size([2, 3]), torch.Size([2, 256]))
    """
    check_image_size("sgan", image_size, IMAGE_SIZES)
    check_channels("sgan", channels)
    check_positive("sgan", width=width, latent=latent, classes=classes)
    if not noise >= 0:  # NaN included
        raise ValueError(f"sgan: noise must not be negative, got {noise!r}")
    generator = Generator(image_size, channels, width, latent, "relu")
    classifier = Classifier(image_size, channels, width, classes, noise)
    generator.apply(initialise)
    classifier.apply(_initialise)
    nn.init.normal_(classifier.head.weight, 0.0, 0.05)
    return SemiSupervisedGAN(
        generator, classifier, (latent, 1, 1), (channels, image_size, image_size), classes
    )


def _initialise(module: nn.Module) -> None:
    # Without batch normalisation after every layer, the scale must be kept (He et al. 2015).
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, NEGATIVE_SLOPE)
