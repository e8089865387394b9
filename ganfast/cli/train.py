"""``ganfast train``: train a GAN on a folder of images or a known data set."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ganfast import convert_sync_batchnorm, models
from ganfast.cli.errors import INTERRUPTED, CommandError, in_one_line, require
from ganfast.cli.options import chosen
from ganfast.cli.processes import (
    only_first_prints,
    own_device,
    stop_on_interrupt,
    warnings_in_one_line,
)
from ganfast.cli.train_settings import (
    DEFAULT_WIDTHS,
    QUALITY_EVERY,
    Settings,
    add_settings,
    resolved,
    saved_in,
)
from ganfast.training import (
    ImageData,
    Processes,
    Trainer,
    joined,
    load_images,
    load_newest,
)
from ganfast.training.batches import as_bytes
from ganfast.training.fidelity import fidelity, find_inception

__all__ = ["add_parser", "run"]

FIDELITY_IMAGES = 2000
NEEDED_PACKAGES = ("matplotlib", "safetensors", "torchvision", "tqdm")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand; ``--resume`` keeps the run's values of options left out."""
    parser = subparsers.add_parser(
        "train",
        help="train a GAN on images",
        description="Train a GAN. Checkpoints, sample grids and metrics go to the folder --out. "
        "Several processes: torchrun --nproc-per-node N -m ganfast train ...",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument_group("run").add_argument
    add("--out", metavar="PATH", default="runs/train", help="default: runs/train")
    add(
        "--resume",
        action="store_true",
        default=False,
        help="continue the run in --out from its newest whole checkpoint, with its options",
    )
    add(
        "--fidelity",
        action="store_true",
        default=False,
        help="measure FID, KID and IS at the end by torch-fidelity; on a CPU that takes minutes",
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and return 0, or 130 after Ctrl-C or SIGTERM."""
    board = ("tensorboard",) if getattr(args, "tensorboard", False) else ()
    require(*NEEDED_PACKAGES, *board)
    out = Path(args.out)
    with in_one_line(out):
        if args.fidelity:
            find_inception()  # a missing file must show before training
        with only_first_prints():
            state = _newest_checkpoint(out) if args.resume else None
            values = resolved(saved_in(state) if state else {}, chosen(args, Settings))
            device = own_device(values.get("device"))
            with joined(device) as processes:
                trainer = _build_trainer(values, out, device, processes)
                if state:
                    trainer.restore(state)
                code = _train(trainer)
                if args.fidelity and code == 0 and processes.leads:
                    _write_fidelity(trainer)
                return code


def _newest_checkpoint(out: Path) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path, state = load_newest(out)
    for warning in caught:
        print(f"ganfast: warning: {warning.message}", file=sys.stderr)
    print(f"resuming from {path}")
    return state


def _build_trainer(
    values: dict[str, Any], out: Path, device: torch.device, processes: Processes
) -> Trainer:
    try:
        settings = Settings(**values)
    except (TypeError, ValueError) as error:  # of a checkpoint: the parser has checked the others
        raise CommandError(str(error)) from error
    with processes.first_before_others():  # rank 0 may have to download them
        data = _load(settings)
    settings = replace(
        settings,  # what checkpoints keep: no default that a later version might change
        channels=data.image_shape[0],
        width=settings.width or DEFAULT_WIDTHS[settings.model],
        epochs=None,
    )
    if epochs := values.get("epochs"):
        per_epoch = max(len(data) // settings.batch_size, 1)  # the trainer refuses none
        settings = replace(settings, steps=epochs * per_epoch)
    if "quality_every" not in values and data.labels is not None and len(data.labels.unique()) > 1:
        settings = replace(settings, quality_every=QUALITY_EVERY)
    model_options = {
        name: getattr(settings, name) for name in ("image_size", "channels", "width", "latent")
    } | settings.model_options
    torch.manual_seed(settings.seed)
    try:
        gan = models.build(settings.model, **model_options)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if settings.sync_batch_norm:
        for network in (gan.generator, gan.discriminator):
            convert_sync_batchnorm(network)
    try:
        trainer = Trainer(
            gan,
            data,
            settings,
            out=out,
            device=device,
            configuration={"model": {"name": settings.model, "options": model_options}},
            processes=processes,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    if trainer.quality is not None:
        print(f"Frechet distance between halves of the real images: {trainer.quality.floor:.3g}")
    channels, height, width = data.image_shape
    print(
        f"training {settings.model} on {data.name}: {len(data)} images of "
        f"{channels}x{height}x{width}, {settings.steps} steps of {settings.batch_size}, on {device}"
        + (f", in {processes.count} processes" if processes.count > 1 else ""),
        flush=True,  # before the run also if standard output is a file or a pipe
    )
    return trainer


def _write_fidelity(trainer: Trainer) -> None:
    """Compare a fixed choice of real images with generated ones."""
    assert isinstance(trainer.options, Settings)
    data = _load(trainer.options)
    rng = torch.Generator().manual_seed(0)
    real = data.images[torch.randperm(len(data), generator=rng)[:FIDELITY_IMAGES]]
    latent = torch.randn(FIDELITY_IMAGES, *trainer.fixed_noise.shape[1:], generator=rng)
    fake = [trainer.sample(part.to(trainer.device)).cpu() for part in latent.split(100)]
    generated = as_bytes(torch.cat(fake))
    figures = fidelity(real, generated, cuda=trainer.device.type == "cuda")
    counted = {"step": trainer.step, "real": len(real), "generated": len(generated), **figures}
    path = trainer.out / "fidelity.json"
    path.write_text(json.dumps(counted, indent=1) + "\n")
    print(f"FID {figures['frechet_inception_distance']:.2f}; see {path}")


def _load(settings: Settings) -> ImageData:
    return load_images(
        settings.data,
        root=settings.root,
        download=settings.download,
        image_size=settings.image_size,
        channels=settings.channels,
    )


def _train(trainer: Trainer) -> int:
    with stop_on_interrupt(trainer), warnings_in_one_line():
        finished = trainer.run()
    if not finished:
        print(
            f"ganfast: interrupted; saved a checkpoint at step {trainer.step} in {trainer.out}; "
            "continue with --resume",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(f"trained {trainer.step} steps; see {trainer.out / 'samples.png'}")
    return 0
