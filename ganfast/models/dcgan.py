"""DCGAN: strided convolutions, batch normalisation and rectifiers, without pooling.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", 2015, section 3 (https://arxiv.org/abs/1511.06434), with the layer
sizes and parameter names of https://github.com/pytorch/examples/tree/main/dcgan: at 64 pixels a
checkpoint of that script loads into these models, and conversely.
"""

from typing import Literal

from torch import Tensor, nn

from ganfast.models._gan import GAN, check_channels, check_image_size, check_positive
from ganfast.nn import BatchNorm2d

__all__ = ["Discriminator", "Generator", "dcgan", "first_maps", "initialise"]

IMAGE_SIZES = (16, 28, 32, 64, 128, 256)
NEGATIVE_SLOPE = 0.2  # of every LeakyReLU: section 3, "Details of adversarial training"

Activation = Literal["relu", "leaky_relu"]


def _norm_act(features: int, activation: Activation) -> list[nn.Module]:
    # The Identity keeps the index of a separate activation layer, and so the keys of all later
    # layers.
    fused = BatchNorm2d(features, activation=activation, negative_slope=NEGATIVE_SLOPE)
    return [fused, nn.Identity()]


def first_maps(image_size: int, width: int) -> tuple[int, int]:
    """Return number and side of the generator's first feature maps, and the discriminator's last.

    They are as small as doubling the side to ``image_size`` allows: 4x4, or 7x7 for 28 pixels.
    """
    side = 7 if image_size == 28 else 4
    return width * image_size // (2 * side), side


class Generator(nn.Module):
    """Map noise ``[N, latent, 1, 1]`` to images ``[N, channels, size, size]`` in [-1, 1]."""

    def __init__(
        self, image_size: int, channels: int, width: int, latent: int, activation: Activation
    ) -> None:
        super().__init__()
        features, side = first_maps(image_size, width)  # halved each time the side doubles
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent, features, side, 1, 0, bias=False),
            *_norm_act(features, activation),
        ]
        while features > width:
            layers += [
                nn.ConvTranspose2d(features, features // 2, 4, 2, 1, bias=False),
                *_norm_act(features // 2, activation),
            ]
            features //= 2
        layers += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.main(noise)
        return images


class Discriminator(nn.Module):
    """Map images ``[N, channels, size, size]`` to one logit each, ``[N]``."""

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 4, 2, 1, bias=False),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        ]
        features = width
        most, side = first_maps(image_size, width)
        while features < most:
            layers += [
                nn.Conv2d(features, features * 2, 4, 2, 1, bias=False),
                *_norm_act(features * 2, "leaky_relu"),
            ]
            features *= 2
        layers.append(nn.Conv2d(features, 1, side, 1, 0, bias=False))
        self.main = nn.Sequential(*layers)

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last layer: maps ``[N, F, S, S]`` as :func:`first_maps` says."""
        features: Tensor = self.main[:-1](images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.main(images)  # [N, 1, 1, 1]
        return logits.reshape(images.shape[0])


def initialise(module: nn.Module) -> None:
    """Draw one layer's parameters as DCGAN does; use it with ``model.apply(initialise)``.

    Convolutions are drawn from N(0, 0.02), batch normalisation weights from N(1, 0.02), and its
    biases are zero (section 3, and ``weights_init`` of the PyTorch example).
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def dcgan(
    image_size: int = 64,
    channels: int = 3,
    width: int = 64,
    latent: int = 100,
    activation: Activation = "relu",
) -> GAN:
    """Build a DCGAN with freshly drawn parameters.

    The generator takes noise ``[N, latent, 1, 1]`` and gives images
    ``[N, channels, image_size, image_size]``; the discriminator gives logits ``[N]``.

    Args:
        image_size: side of the images in pixels: 16, 28, 32, 64, 128 or 256.
        channels: 1 (grey) or 3 (RGB).
        width: feature maps beside the image; doubled each time the side halves (64 in the paper).
        latent: length of the noise vector.
        activation: of the generator, "relu" as in the paper or "leaky_relu" (slope 0.2).

    Raises:
        ValueError: if a value is not one of those allowed.

    Source:
        Radford et al. 2015, section 3, https://arxiv.org/abs/1511.06434

    Examples:
        >>> import torch
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=32, channels=1, width=8)
        >>> images = gan.generator(torch.randn(2, *gan.latent))
        >>> images.shape, gan.discriminator(images).shape
        (torch.Size([2, 1, 32, 32]), torch.Size([2]))
    """
    check_image_size("dcgan", image_size, IMAGE_SIZES)
    check_channels("dcgan", channels)
    check_positive("dcgan", width=width, latent=latent)
    if activation not in ("relu", "leaky_relu"):
        raise ValueError(f"dcgan: activation must be 'relu' or 'leaky_relu', got {activation!r}")
    generator = Generator(image_size, channels, width, latent, activation).apply(initialise)
    discriminator = Discriminator(image_size, channels, width).apply(initialise)
    return GAN(generator, discriminator, (latent, 1, 1), (channels, image_size, image_size))
