"""Settings of published GANs for ``ganfast train --preset``, and how settings are resolved."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from ganfast.cli.errors import CommandError

__all__ = ["PRESETS", "resolved"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Radford et al. 2015, section 3, https://arxiv.org/abs/1511.06434
    "dcgan": {
        "model": "dcgan",
        "image_size": 64,
        "width": 64,
        "latent": 100,
        "batch_size": 128,
        "lr": 2e-4,
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
        "lr": 2e-4,
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
        "lr": 2e-4,
        "betas": (0.5, 0.999),
        "loss": "bce",
    },
}
"""Values of the settings of ``ganfast train``; options given beside a preset override them."""


def resolved(
    saved: Mapping[str, Any], given: Mapping[str, Any], changeable: Container[str]
) -> dict[str, Any]:
    """Join settings: of a checkpoint or a preset, and those given now.

    Args:
        saved: all settings of the run to resume, none for a new run.
        given: those of the command line; among them may be the name of a preset.
        changeable: names of settings that may differ from those saved.

    Raises:
        CommandError: a setting given contradicts the saved one.

    Example:
        >>> from ganfast.cli.presets import resolved
        >>> resolved({}, {"preset": "dcgan", "lr": 0.001}, ())["lr"]
        0.001
    """
    preset = {**PRESETS.get(given.get("preset", ""), {})}
    if given.get("model", preset.get("model")) != preset.get("model"):
        preset.pop("model_options", None)  # which are of the preset's own model
    for name, value in given.items():
        if saved and name not in changeable and saved.get(name) != value:
            raise CommandError(
                f"--{name.replace('_', '-')} {value} contradicts the run being resumed, which has "
                f"{saved.get(name)}; leave the option out, or start a new run with another --out"
            )
    if "steps" in given or "epochs" in given:
        saved = {**saved, "steps": None, "epochs": None}
    return {**preset, **saved, **given}
