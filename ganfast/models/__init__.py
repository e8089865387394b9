"""Generators and discriminators of fused layers, with the checkpoint keys of plain torch."""

from collections.abc import Callable
from typing import Any

from ganfast.fusion.unfused import stock
from ganfast.models._gan import GAN
from ganfast.models.acgan import ConditionalGAN, acgan
from ganfast.models.dcgan import dcgan
from ganfast.models.keras_dcgan import keras_dcgan
from ganfast.models.latents import slerp
from ganfast.models.mlp_gan import mlp_gan
from ganfast.models.sgan import SemiSupervisedGAN, sgan

__all__ = [
    "BUILDERS",
    "GAN",
    "ConditionalGAN",
    "SemiSupervisedGAN",
    "acgan",
    "build",
    "dcgan",
    "keras_dcgan",
    "mlp_gan",
    "sgan",
    "slerp",
    "stock",
]

BUILDERS: dict[str, Callable[..., GAN]] = {
    "dcgan": dcgan,
    "keras-dcgan": keras_dcgan,
    "mlp": mlp_gan,
}


def build(name: str, **options: Any) -> GAN:
    """Build the generator and discriminator registered under a name.

    Args:
        name: a key of ``BUILDERS``.
        options: the builder's own, such as ``image_size``, ``channels``, ``width`` and ``latent``.

    Raises:
        ValueError: if no model has this name, or an option's value is not allowed.

    Examples:
        >>> from ganfast import models
        >>> models.build("dcgan", image_size=32, channels=1, width=8).image_shape
        (1, 32, 32)
    """
    if name not in BUILDERS:
        raise ValueError(f"no model is named {name!r}; known models: {', '.join(sorted(BUILDERS))}")
    return BUILDERS[name](**options)
