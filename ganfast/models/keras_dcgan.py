"""The DCGAN of Keras tutorials: a dense first layer, leaky rectifiers, dropout in one network.

After TensorFlow's "Deep Convolutional Generative Adversarial Network"
(https://www.tensorflow.org/tutorials/generative/dcgan), with one block more for images of 32
pixels such as CIFAR-10's: kernels of 5x5, normalisation in the generator alone, and the defaults of
Keras. Its BatchNormalization has eps 1e-3 and momentum 0.99, which is torch's 0.01. Its "same"
padding of an even side pads more at the end than at the beginning, torch's is symmetric: weights of
Keras do not fit exactly.
"""

from __future__ import annotations

from torch import Tensor, nn

from ganfast.models._gan import GAN, check_channels, check_image_size, check_positive
from ganfast.nn import BatchNorm1d, BatchNorm2d

__all__ = ["Discriminator", "Generator", "initialise", "keras_dcgan"]

IMAGE_SIZES = (16, 32, 64)
NEGATIVE_SLOPE = 0.3
EPS = 1e-3
MOMENTUM = 0.01
DROPOUT = 0.3


def _norm_act(kind: type[BatchNorm1d] | type[BatchNorm2d], features: int) -> list[nn.Module]:
    # The Identity keeps the index of a separate LeakyReLU, and so the keys of all later layers.
    fused = kind(features, EPS, MOMENTUM, activation="leaky_relu", negative_slope=NEGATIVE_SLOPE)
    return [fused, nn.Identity()]


class Generator(nn.Module):
    """Map noise ``[N, latent]`` to images ``[N, channels, size, size]`` in [-1, 1]."""

    def __init__(self, image_size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        features = width * image_size // 4  # at 4x4 pixels; halved each time the side doubles
        layers: list[nn.Module] = [
            nn.Linear(latent, features * 4 * 4, bias=False),
            *_norm_act(BatchNorm1d, features * 4 * 4),
            nn.Unflatten(1, (features, 4, 4)),
        ]
        while features > 2 * width:
            layers += [
                nn.ConvTranspose2d(features, features // 2, 5, 2, 2, 1, bias=False),
                *_norm_act(BatchNorm2d, features // 2),
            ]
            features //= 2
        layers += [nn.ConvTranspose2d(features, channels, 5, 2, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.main(noise)
        return images


class Discriminator(nn.Module):
    """Map images ``[N, channels, size, size]`` to one logit each, ``[N]``."""

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, features = channels, width
        while features <= width * image_size // 8:
            layers += [
                nn.Conv2d(before, features, 5, 2, 2),
                nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
                nn.Dropout(DROPOUT),
            ]
            before, features = features, features * 2
        layers += [nn.Flatten(), nn.Linear(before * 4 * 4, 1)]
        self.main = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.main(images)  # [N, 1]
        return logits.squeeze(1)


def initialise(module: nn.Module) -> None:
    """Draw one layer's parameters as Keras does; use it with ``model.apply(initialise)``.

    Weights are drawn from Glorot and Bengio's uniform distribution, biases are zero.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def keras_dcgan(image_size: int = 32, channels: int = 3, width: int = 64, latent: int = 100) -> GAN:
    """Build the DCGAN of Keras tutorials with freshly drawn parameters.

    The generator takes noise ``[N, latent]`` and gives images
    ``[N, channels, image_size, image_size]``; the discriminator gives logits ``[N]``. At 32 pixels
    the generator's dense layer gives 4x4 pixels of ``8 * width`` features, 512 by default.

    Args:
        image_size: side of the images in pixels: 16, 32 or 64.
        channels: 1 (grey) or 3 (RGB).
        width: features of the discriminator's first layer; doubled each time the side halves.
        latent: length of the noise vector.

    Raises:
        ValueError: if a value is not one of those allowed.

    Source:
        https://www.tensorflow.org/tutorials/generative/dcgan

    Examples:
        >>> import torch
        >>> from ganfast.models import keras_dcgan
        >>> gan = keras_dcgan(width=8)
        >>> images = gan.generator(torch.randn(2, *gan.latent))
        >>> images.shape, gan.discriminator(images).shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2]))
    """
    check_image_size("keras_dcgan", image_size, IMAGE_SIZES)
    check_channels("keras_dcgan", channels)
    check_positive("keras_dcgan", width=width, latent=latent)
    generator = Generator(image_size, channels, width, latent).apply(initialise)
    discriminator = Discriminator(image_size, channels, width).apply(initialise)
    return GAN(generator, discriminator, (latent,), (channels, image_size, image_size))
