"""An encoder for DCGAN: the discriminator's layers, with a latent vector as output."""

from __future__ import annotations

from torch import Tensor, nn

from ganfast.models.dcgan import Discriminator, first_maps

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Map images ``[N, channels, size, size]`` to latent vectors ``[N, latent, 1, 1]``.

    Source:
        Schlegl et al. 2019, section 2.2, https://doi.org/10.1016/j.media.2019.01.010

    Examples:
        >>> import torch
        >>> from ganfast.models.encoder import Encoder
        >>> Encoder(image_size=16, channels=1, width=4, latent=10)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10, 1, 1])
    """

    def __init__(self, image_size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        layers = list(Discriminator(image_size, channels, width).main)[:-1]
        features, side = first_maps(image_size, width)
        self.main = nn.Sequential(*layers, nn.Conv2d(features, latent, side))

    def forward(self, images: Tensor) -> Tensor:
        latent: Tensor = self.main(images)
        return latent
