"""Values of the settings of ``ganfast train``, by the names of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["DEFAULTS", "PRESETS"]

# The best grid of digits within two minutes on two CPU cores: on that small set 5e-4 with batches
# of 32 gets further than Radford's 2e-4 with 64, and 1e-3 falls back.
DEFAULTS: Mapping[str, Any] = {"steps": 4000, "batch_size": 32, "learning_rate": 5e-4}
"""What the command sets otherwise than the trainer."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Radford et al. 2015, section 3, https://arxiv.org/abs/1511.06434
    "dcgan": {
        "model": "dcgan",
        "image_size": 64,
        "width": 64,
        "latent": 100,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "betas": (0.5, 0.999),
        "loss": "bce",
    },
    # The layers of https://www.tensorflow.org/tutorials/generative/dcgan with one block more, for
    # images of 32 pixels; batches and Adam of Radford et al. With the tutorial's 1e-4 and Keras'
    # own 0.9 as first beta, 300 steps on CIFAR-10 gave one pattern for all noise.
    "keras-dcgan": {
        "model": "keras-dcgan",
        "image_size": 32,
        "width": 64,
        "latent": 100,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "betas": (0.5, 0.999),
        "loss": "bce",
    },
    # https://github.com/eriklindernoren/PyTorch-GAN, gan.py: the second argument of its BatchNorm1d
    # is eps
    "mlp-mnist": {
        "model": "mlp",
        "model_options": {"eps": 0.8},
        "image_size": 28,
        "width": 128,
        "latent": 100,
        "batch_size": 64,
        "learning_rate": 2e-4,
        "betas": (0.5, 0.999),
        "loss": "bce",
    },
}
"""Published GANs for ``--preset``; options given beside a preset override it."""
