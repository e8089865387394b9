"""The settings of ``ganfast train``, and the options that set them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from ganfast import models
from ganfast.cli.options import finite_positive, not_negative, positive, probability, seed
from ganfast.cli.presets import PRESETS
from ganfast.functional.losses import GAN_LOSSES
from ganfast.training import PRECISIONS

__all__ = [
    "CHANGEABLE",
    "DEFAULT_STEPS",
    "DEFAULT_WIDTHS",
    "QUALITY_EVERY",
    "Settings",
    "add_settings",
]

DEFAULT_STEPS = 4000
QUALITY_EVERY = 500
DEFAULT_WIDTHS = {"dcgan": 32, "keras-dcgan": 64, "mlp": 128}


@dataclass(frozen=True)
class Settings:
    """The options of one run.

    The defaults give the best grid of digits within two minutes on two CPU cores: on that small
    set 5e-4 with batches of 32 gets further than Radford's 2e-4 with 64, and 1e-3 falls back.
    """

    data: str = "digits"
    root: str | None = None
    download: bool = False
    preset: str | None = None
    model: str = "dcgan"
    model_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 32
    channels: int | None = None
    width: int | None = None
    latent: int = 100
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 32
    lr: float = 5e-4
    betas: tuple[float, float] = (0.5, 0.999)
    loss: str = "bce"
    precision: str = "fp32"
    ema: float | None = None
    penalty: float = 0.0
    r1: float = 0.0
    seed: int = 0
    device: str | None = None
    sync_batch_norm: bool = False
    log_every: int = 50
    sample_every: int = 500
    checkpoint_every: int = 500
    quality_every: int | None = None
    keep_checkpoints: int = 2
    tensorboard: bool = False
    on_nan: str = "stop"


# What a resumed run may set anew; everything else stays as its checkpoint has it.
CHANGEABLE = frozenset(
    [
        "root",
        "download",
        "steps",
        "epochs",
        "device",
        "sync_batch_norm",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "quality_every",
        "keep_checkpoints",
        "tensorboard",
        "on_nan",
    ]
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare an option for every setting."""
    default = Settings()
    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        metavar="SOURCE",
        help="digits, mnist, fashion-mnist, cifar10, folder:PATH or npz:PATH "
        f"(default: {default.data})",
    )
    add("--root", metavar="PATH", help="where mnist, fashion-mnist, cifar10 lie (default: data)")
    add("--download", action="store_true", help="fetch them into --root if missing")
    _add_model_options(parser, default)
    _add_training_options(parser, default)
    _add_watching_options(parser, default)


def _add_model_options(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--preset",
        choices=sorted(PRESETS),
        help="a published GAN: sets model, sizes, batch, Adam and loss where no option does",
    )
    add("--model", choices=sorted(models.BUILDERS), help=f"default: {default.model}")
    add(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="side of the images; dcgan: 16, 32, 64, 128, 256; "
        f"keras-dcgan: 16, 32, 64 (default: {default.image_size})",
    )
    add("--channels", type=int, choices=(1, 3), help="grey or RGB (default: as the data)")
    widths = ", ".join(f"{width} for {name}" for name, width in DEFAULT_WIDTHS.items())
    add("--width", type=positive, help=f"features of the narrowest layer (default: {widths})")
    add("--latent", type=positive, help=f"length of the noise (default: {default.latent})")


def _add_training_options(parser: argparse.ArgumentParser, default: Settings) -> None:
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, help=f"default: {DEFAULT_STEPS}")
    length.add_argument("--epochs", type=positive, help="passes over the data, instead of --steps")
    add = group.add_argument
    add(
        "--batch-size",
        type=positive,
        help=f"images, of all processes together (default: {default.batch_size})",
    )
    add("--lr", type=finite_positive, help=f"Adam's learning rate (default: {default.lr})")
    add(
        "--betas",
        type=probability,
        nargs=2,
        metavar=("B1", "B2"),
        help=f"Adam's decay rates (default: {default.betas[0]} {default.betas[1]})",
    )
    add("--loss", choices=sorted(GAN_LOSSES), help=f"default: {default.loss}")
    add(
        "--precision",
        choices=(*sorted(PRECISIONS), "auto"),
        help="bf16, fp16: by torch.autocast, where the device has instructions for them; auto: the "
        f"best that it has (default: {default.precision})",
    )
    add("--ema", type=probability, metavar="DECAY", help="sample from an average of the weights")
    add("--penalty", type=finite_positive, metavar="WEIGHT", help="of the gradient penalty")
    add("--r1", type=finite_positive, metavar="GAMMA", help="of the R1 penalty")
    add("--seed", type=seed, help=f"of every random number (default: {default.seed})")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
    add(
        "--sync-batch-norm",
        action="store_true",
        help="normalise over the whole batch, not over each process's part of it",
    )


def _add_watching_options(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("what is written, and when").add_argument
    for name, what in (("log", "metrics"), ("sample", "samples"), ("checkpoint", "checkpoints")):
        steps = getattr(default, f"{name}_every")
        add(
            f"--{name}-every",
            type=positive,
            metavar="STEPS",
            help=f"steps from {what} to {what} (default: {steps})",
        )
    add(
        "--quality-every",
        type=not_negative,
        metavar="STEPS",
        help="steps from one Frechet distance to real images to the next, in the features of a "
        "small classifier; best.safetensors is the best checkpoint; 0 for none "
        f"(default: {QUALITY_EVERY} where images have labels)",
    )
    add(
        "--keep-checkpoints",
        type=positive,
        metavar="COUNT",
        help=f"how many to keep (default: {default.keep_checkpoints})",
    )
    add("--tensorboard", action="store_true", help="write events for TensorBoard below --out too")
    add(
        "--on-nan",
        choices=("stop", "rollback"),
        help="where a loss is not finite: stop, or go back to the last checkpoint with half the "
        f"learning rate, three times at most (default: {default.on_nan})",
    )
