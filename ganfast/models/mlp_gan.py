"""A GAN of fully connected layers, for small images.

Goodfellow et al., "Generative Adversarial Networks", 2014 (https://arxiv.org/abs/1406.2661), in the
form, and with the parameter names, of ``gan.py`` in https://github.com/eriklindernoren/PyTorch-GAN.
"""

import math

from torch import Tensor, nn

from ganfast.models._gan import GAN, check_channels, check_positive
from ganfast.nn import BatchNorm1d

__all__ = ["Discriminator", "Generator", "mlp_gan"]

NEGATIVE_SLOPE = 0.2


class Generator(nn.Module):
    """Map noise ``[N, latent]`` to images ``[N, C, H, W]`` in [-1, 1]."""

    def __init__(
        self, image_shape: tuple[int, int, int], width: int, latent: int, eps: float
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        layers: list[nn.Module] = [
            nn.Linear(latent, width),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        ]
        for features in (width, 2 * width, 4 * width):
            layers += [
                nn.Linear(features, 2 * features),
                BatchNorm1d(
                    2 * features,
                    eps=eps,
                    activation="leaky_relu",
                    negative_slope=NEGATIVE_SLOPE,
                ),
                nn.Identity(),  # the index of a separate LeakyReLU: keys stay those of plain torch
            ]
        layers += [nn.Linear(8 * width, math.prod(image_shape)), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        pixels: Tensor = self.model(noise)
        return pixels.reshape(noise.shape[0], *self.image_shape)


class Discriminator(nn.Module):
    """Map images ``[N, C, H, W]`` to one logit each, ``[N]``."""

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(math.prod(image_shape), 4 * width),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            nn.Linear(4 * width, 2 * width),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            nn.Linear(2 * width, 1),
        )

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last layer, ``[N, 2 * width]``."""
        features: Tensor = self.model[:-1](images.flatten(1))
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.flatten(1))  # [N, 1]
        return logits.squeeze(1)


def mlp_gan(
    image_size: int = 28,
    channels: int = 1,
    latent: int = 100,
    width: int = 128,
    eps: float = 1e-5,
) -> GAN:
    """Build a GAN of fully connected layers with torch's default initialisation.

    The generator takes noise ``[N, latent]`` and gives images
    ``[N, channels, image_size, image_size]``; the discriminator gives logits ``[N]``.

    Args:
        image_size: side of the images in pixels, any positive number.
        channels: 1 (grey) or 3 (RGB).
        latent: length of the noise vector.
        width: features of the generator's first layer; the next have 2, 4 and 8 times as many.
        eps: of batch normalisation. Checkpoints of PyTorch-GAN were trained with 0.8.

    Raises:
        ValueError: if a value is not one of those allowed.

    Source:
        Goodfellow et al. 2014, section 5, https://arxiv.org/abs/1406.2661

    Examples:
        >>> import torch
        >>> from ganfast.models import mlp_gan
        >>> gan = mlp_gan(width=8)
        >>> images = gan.generator(torch.randn(2, *gan.latent))
        >>> images.shape, gan.discriminator(images).shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2]))
    """
    check_positive("mlp_gan", image_size=image_size, latent=latent, width=width)
    check_channels("mlp_gan", channels)
    image_shape = (channels, image_size, image_size)
    generator = Generator(image_shape, width, latent, eps)
    return GAN(generator, Discriminator(image_shape, width), (latent,), image_shape)
