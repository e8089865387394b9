"""The result of a builder, and the checks of its arguments."""

from typing import NamedTuple

from torch import nn

__all__ = ["GAN", "check_channels", "check_image_size", "check_positive"]


class GAN(NamedTuple):
    """A generator, its discriminator, and the shapes that join them.

    The generator maps noise ``[N, *latent]`` to images ``[N, *image_shape]`` in [-1, 1]; the
    discriminator maps such images to one logit each, ``[N]``.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent: tuple[int, ...]
    image_shape: tuple[int, int, int]


def check_positive(model: str, **sizes: int) -> None:
    """Raise ValueError unless every size is a positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{model}: {name} must be a positive integer, got {size!r}")


def check_channels(model: str, channels: int) -> None:
    """Raise ValueError unless images are grey (1 channel) or RGB (3 channels)."""
    if channels not in (1, 3):
        raise ValueError(f"{model}: channels must be 1 (grey) or 3 (RGB), got {channels!r}")


def check_image_size(model: str, image_size: int, allowed: tuple[int, ...]) -> None:
    """Raise ValueError unless a model makes images of this side."""
    if image_size not in allowed:
        sizes = ", ".join(map(str, allowed))
        raise ValueError(f"{model}: image_size must be one of {sizes}, got {image_size!r}")
