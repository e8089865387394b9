"""``ganfast train``: train a GAN on a folder of images or a known data set."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ganfast import models
from ganfast.cli.errors import INTERRUPTED, CommandError
from ganfast.cli.options import finite_positive, not_negative, positive, probability, seed
from ganfast.cli.presets import PRESETS, joined
from ganfast.functional.losses import GAN_LOSSES
from ganfast.training import (
    PRECISIONS,
    CheckpointError,
    DataError,
    DivergenceError,
    ImageData,
    Trainer,
    TrainingOptions,
    TrainingWarning,
    load_images,
    load_newest,
)
from ganfast.training.fidelity import fidelity, find_inception

__all__ = ["add_parser", "run"]

DEFAULT_STEPS = 4000
QUALITY_EVERY = 1000
FIDELITY_IMAGES = 2000
DEFAULT_WIDTHS = {"dcgan": 32, "keras-dcgan": 64, "mlp": 128}
# Looked for before the first step: a missing one must not show after the last.
NEEDED_PACKAGES = ("matplotlib", "safetensors", "torchvision", "tqdm")


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
        "log_every",
        "sample_every",
        "checkpoint_every",
        "quality_every",
        "keep_checkpoints",
        "tensorboard",
        "on_nan",
    ]
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand; options left out are absent, so that ``--resume`` keeps its own."""
    default = Settings()
    parser = subparsers.add_parser(
        "train",
        help="train a GAN on images",
        description="Train a GAN. Checkpoints, sample grids and metrics go to the folder --out.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument_group("data and files").add_argument
    add(
        "--data",
        metavar="SOURCE",
        help="digits, mnist, fashion-mnist, cifar10, folder:PATH or npz:PATH "
        f"(default: {default.data})",
    )
    add("--root", metavar="PATH", help="where mnist, fashion-mnist, cifar10 lie (default: data)")
    add("--download", action="store_true", help="fetch them into --root if missing")
    add("--out", metavar="PATH", default="runs/train", help="default: runs/train")
    add(
        "--fidelity",
        action="store_true",
        default=False,
        help="measure FID, KID and IS at the end by torch-fidelity; on a CPU that takes minutes",
    )
    add(
        "--resume",
        action="store_true",
        default=False,
        help="continue the run in --out from its newest whole checkpoint, with its options",
    )
    _add_model_options(parser, default)
    _add_training_options(parser, default)


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
    add("--batch-size", type=positive, help=f"default: {default.batch_size}")
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
        choices=sorted(PRECISIONS),
        help=f"bf16, fp16: by torch.autocast (default: {default.precision})",
    )
    add("--ema", type=probability, metavar="DECAY", help="sample from an average of the weights")
    add("--penalty", type=finite_positive, metavar="WEIGHT", help="of the gradient penalty")
    add("--r1", type=finite_positive, metavar="GAMMA", help="of the R1 penalty")
    add("--seed", type=seed, help=f"of every random number (default: {default.seed})")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
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


def run(args: argparse.Namespace) -> int:
    """Train, and return 0, or 130 after Ctrl-C or SIGTERM."""
    board = ("tensorboard",) if getattr(args, "tensorboard", False) else ()
    for package in (*NEEDED_PACKAGES, *board):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    given = {f.name: vars(args)[f.name] for f in fields(Settings) if f.name in vars(args)}
    if "betas" in given:
        given["betas"] = tuple(given["betas"])
    out = Path(args.out)
    try:
        if args.fidelity:
            find_inception()  # a missing file must not show after the last step
        state = _newest_checkpoint(out) if args.resume else None
        saved = state["configuration"]["settings"] if state else {}
        settings = Settings(**joined(saved, given, CHANGEABLE))
        trainer = _build_trainer(settings, out)
        if state:
            trainer.restore(state)
        code = _train(trainer)
        if args.fidelity and code == 0:
            _write_fidelity(trainer, settings)
        return code
    except (DataError, CheckpointError, DivergenceError) as error:
        raise CommandError(str(error)) from error


def _newest_checkpoint(out: Path) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path, state = load_newest(out)
    for warning in caught:
        print(f"ganfast: warning: {warning.message}", file=sys.stderr)
    if "settings" not in state["configuration"]:
        raise CommandError(f"{path} was not written by 'ganfast train'")
    print(f"resuming from {path}")
    return state


def _build_trainer(settings: Settings, out: Path) -> Trainer:
    device = _device(settings.device)
    data = _load(settings)
    steps = settings.steps or DEFAULT_STEPS
    if settings.epochs:
        steps = settings.epochs * (len(data) // settings.batch_size)
    every = settings.quality_every
    if every is None:
        every = QUALITY_EVERY if data.labels is not None and len(data.labels.unique()) > 1 else 0
    settings = replace(
        settings,  # what checkpoints keep: no default that a later version might change
        channels=data.image_shape[0],
        width=settings.width or DEFAULT_WIDTHS[settings.model],
        steps=steps,
        epochs=None,
        quality_every=every,
    )
    model_options = {
        name: getattr(settings, name) for name in ("image_size", "channels", "width", "latent")
    } | settings.model_options
    torch.manual_seed(settings.seed)
    try:
        gan = models.build(settings.model, **model_options)
    except ValueError as error:
        raise CommandError(str(error)) from error
    shared = {f.name for f in fields(TrainingOptions)} & {f.name for f in fields(Settings)}
    options = TrainingOptions(
        **{name: getattr(settings, name) for name in shared} | {"steps": steps},
        learning_rate=settings.lr,
    )
    configuration = {
        "model": {"name": settings.model, "options": model_options},
        "settings": asdict(settings),
    }
    try:
        trainer = Trainer(gan, data, options, out=out, device=device, configuration=configuration)
    except OSError as error:
        raise CommandError(f"cannot write to --out {out}: {error}") from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    if trainer.quality is not None:
        print(f"Frechet distance between halves of the real images: {trainer.quality.floor:.3g}")
    channels, height, width = data.image_shape
    print(
        f"training {settings.model} on {data.name}: {len(data)} images of "
        f"{channels}x{height}x{width}, {steps} steps of {settings.batch_size}, on {device}"
    )
    return trainer


def _write_fidelity(trainer: Trainer, settings: Settings) -> None:
    """Compare as many real images, always the same, with generated ones."""
    data = _load(settings)
    rng = torch.Generator().manual_seed(0)
    real = data.images[torch.randperm(len(data), generator=rng)[:FIDELITY_IMAGES]]
    latent = torch.randn(FIDELITY_IMAGES, *trainer.fixed_noise.shape[1:], generator=rng)
    fake = [trainer.sample(part.to(trainer.device)).cpu() for part in latent.split(100)]
    bytes_ = torch.cat(fake).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    figures = fidelity(real, bytes_, cuda=trainer.device.type == "cuda")
    counted = {"step": trainer.step, "real": len(real), "generated": len(bytes_), **figures}
    path = trainer.out / "fidelity.json"
    try:
        path.write_text(json.dumps(counted, indent=1) + "\n")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error}") from error
    print(f"FID {figures['frechet_inception_distance']:.2f}; see {path}")


def _load(settings: Settings) -> ImageData:
    return load_images(
        settings.data,
        root=settings.root,
        download=settings.download,
        image_size=settings.image_size,
        channels=settings.channels,
    )


def _device(name: str | None) -> torch.device:
    """Return the device asked for, once it has answered."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device {name} is not available: {reason}") from error
    return device


def _train(trainer: Trainer) -> int:
    try:
        with _stop_on_interrupt(trainer), _warnings_in_one_line():
            finished = trainer.run()
    except OSError as error:
        raise CommandError(f"cannot write to --out {trainer.out}: {error}") from error
    if not finished:
        print(
            f"ganfast: interrupted; saved a checkpoint at step {trainer.step} in {trainer.out}; "
            "continue with --resume",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(f"trained {trainer.step} steps; see {trainer.out / 'samples.png'}")
    return 0


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", TrainingWarning)
        warnings.showwarning = lambda message, *_: print(
            f"ganfast: warning: {message}", file=sys.stderr
        )
        yield


@contextmanager
def _stop_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """Let a first Ctrl-C or SIGTERM end training after its step, and a second one at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, previous[signal.Signals(signum)] or signal.SIG_DFL)
        trainer.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
