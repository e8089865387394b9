"""The functional API of the fused ops."""

from ganfast.functional.batch_norm_act import batch_norm_act
from ganfast.functional.instance_norm_act import instance_norm_act
from ganfast.functional.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    gan_discriminator_loss,
    gan_generator_loss,
)

__all__ = [
    "batch_norm_act",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "gan_discriminator_loss",
    "gan_generator_loss",
    "instance_norm_act",
]
