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


def _convolution(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False),
        BatchNorm2d(after, activation="leaky_relu", negative_slope=NEGATIVE_SLOPE),
    ]


class Classifier(nn.Module):
    """Map images ``[N, C, size, size]`` to logits of the classes, ``[N, K]``.

    The logit of an image being real is the logarithm of the sum of their exponentials: with
    ``Z = sum(exp(logits))``, ``D(x) = Z / (Z + 1) = sigmoid(logsumexp(logits))``, which is a
    softmax over K + 1 classes with the last logit, that of "generated", fixed to 0.

    A strided convolution of 5x5, then pairs of 3x3 that halve the side, and one more with a pooling
    to 4x4; no batch normalisation after the features, since it would hide the means to be matched.
    """

    def __init__(
        self, image_size: int, channels: int, width: int, classes: int, noise: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Noise(noise), *_convolution(channels, width, 5, 2)]
        features, side = width, image_size // 2
        while side > 8 or features == width:
            layers += _convolution(features, 2 * features, 3, 1)
            layers += _convolution(2 * features, 2 * features, 3, 2)
            features, side = 2 * features, (side + 1) // 2
        layers += [
            *_convolution(features, 2 * features, 3, 1),
            nn.AdaptiveMaxPool2d(4) if side % 4 else nn.MaxPool2d(side // 4),
            nn.Flatten(),
            nn.Linear(2 * features * 16, FEATURES),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last layer, ``[N, 256]``."""
        features: Tensor = self.body(images)
        return features

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the last layer, ``[N, 256]``, and its output."""
        features = self.features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.features_and_logits(images)[1]


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
        image_size: side of the images in pixels: 16, 28, 32, 64, 128 or 256.
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
