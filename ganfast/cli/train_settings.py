"""The settings of ``ganfast train``: the trainer's options, its data and its model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from ganfast import models
from ganfast.cli.errors import CommandError
from ganfast.cli.options import Source, add_option, flag
from ganfast.cli.presets import DEFAULTS, PRESETS
from ganfast.training import TrainingOptions
from ganfast.training.errors import MALFORMED
from ganfast.training.options import POSITIVE, option, options_of

__all__ = ["DEFAULT_WIDTHS", "QUALITY_EVERY", "Settings", "add_settings", "resolved", "saved_in"]

QUALITY_EVERY = 500
DEFAULT_WIDTHS = {"dcgan": 32, "keras-dcgan": 64, "mlp": 128}

_model = partial(option, group="model")
_training = partial(option, group="training", changeable=True)


@dataclass(frozen=True)
class Settings(Source, TrainingOptions):
    """What one run of the command trains, on what and how.

    A new run has the values of ``DEFAULTS``, its preset and the command line, each overriding those
    before it; a resumed one has those of its checkpoint.
    """

    preset: str | None = _model(
        None,
        "a published GAN: sets model, sizes, batch, Adam and loss unless an option does",
        choices=tuple(sorted(PRESETS)),
    )
    model: str = _model("dcgan", "networks to train", choices=tuple(sorted(models.BUILDERS)))
    model_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = _model(
        32,
        "side of the images; dcgan: 16, 28, 32, 64, 128, 256; keras-dcgan: 16, 32, 64",
        POSITIVE,
        metavar="PIXELS",
    )
    channels: int | None = _model(None, "grey or RGB", choices=(1, 3), default_help="as the data")
    width: int | None = _model(
        None,
        "features of the narrowest layer",
        POSITIVE,
        default_help=", ".join(f"{width} for {name}" for name, width in DEFAULT_WIDTHS.items()),
    )
    latent: int = _model(100, "length of the noise", POSITIVE)
    epochs: int | None = _training(None, "passes over the data, instead of --steps", POSITIVE)
    device: str | None = _training(
        None, "cpu, cuda, cuda:1, ...", default_help="cuda if there is one, else cpu"
    )
    sync_batch_norm: bool = _training(
        False, "normalise over the whole batch, not over each process's part of it"
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare an option for every setting; those left out are absent from the arguments."""
    order = ("data", "model", "training", "what is written, and when")
    groups = {title: parser.add_argument_group(title) for title in order}
    length = groups["training"].add_mutually_exclusive_group()
    for name, default, known in options_of(Settings):
        if name == "quality_every":
            known = replace(known, default_help=f"{QUALITY_EVERY} if the images have labels")
        if known.help:
            container = length if name in ("steps", "epochs") else groups[known.group]
            add_option(container, name, DEFAULTS.get(name, default), known)


def saved_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint's run.

    Raises:
        CommandError: the command did not write the checkpoint.
    """
    try:
        saved = dict(state.get("options") or state["configuration"].get("settings") or {})
    except MALFORMED:
        saved = {}
    if "model" not in saved:
        raise CommandError("the checkpoint was not written by 'ganfast train'")
    if "lr" in saved:  # as checkpoints had it before they held the trainer's options
        saved["learning_rate"] = saved.pop("lr")
    return saved


def resolved(saved: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Join the settings of a checkpoint or a preset with those given now.

    Args:
        saved: all settings of the run to resume, none for a new run.
        chosen: those of the command line; among them may be the name of a preset.

    Raises:
        CommandError: a setting given contradicts the saved one, or the checkpoint has a setting
            that this version does not know.

    Examples:
        >>> from ganfast.cli.train_settings import resolved
        >>> resolved({}, {"preset": "dcgan", "learning_rate": 0.001})["learning_rate"]
        0.001
    """
    preset = {**PRESETS.get(chosen.get("preset", ""), {})}
    if chosen.get("model", preset.get("model")) != preset.get("model"):
        preset.pop("model_options", None)  # which are of the preset's own model
    for name, _, known in options_of(Settings):
        if name not in chosen or not saved or known.changeable or saved.get(name) == chosen[name]:
            continue
        raise CommandError(
            f"{flag(name, known)} {chosen[name]} contradicts the run being resumed, which has "
            f"{saved.get(name)}; leave the option out, or start a new run with another --out"
        )
    unknown = sorted(map(str, set(saved) - {each.name for each in fields(Settings)}))
    if unknown:
        raise CommandError(
            f"the checkpoint has settings that this version does not know: "
            f"{', '.join(unknown)}; resume with the version of ganfast that wrote it"
        )
    return {**DEFAULTS, **preset, **saved, **chosen}
