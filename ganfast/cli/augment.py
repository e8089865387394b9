"""``ganfast augment``: do generated images help a classifier that has few labels?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ganfast.applications.augment import (
    AugmentOptions,
    GeneratorOptions,
    plot_accuracies,
    run_seed,
    save_class_grid,
    save_image_folder,
    summarise,
)
from ganfast.applications.records import Record
from ganfast.cli.errors import require
from ganfast.cli.experiment import Experiment, add_experiment
from ganfast.cli.options import chosen, positive
from ganfast.models.dcgan import IMAGE_SIZES
from ganfast.training.progress import Steps

__all__ = ["add_parser", "run"]

IMAGE_SIZE = 16  # enough for digits, and four times as fast as 32
NEEDED_PACKAGES = ("torchvision", "scipy", "matplotlib", "tqdm")
FILES = PLOT, SAMPLES, IMAGES = "accuracies.png", "samples.png", "images"
NAMES = ("data", "root", "validation", "labels", "image_size", "per_class", "updates",
         "gan_updates", "pseudo_updates", "width", "seeds", "device")  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "augment",
        help="train a classifier with and without generated images",
        description="Train a conditional DCGAN on few labelled images, and classifiers on those "
        "images, on generated ones, on both, and on these shifted at random; with --pseudo-updates "
        "the DCGAN learns from all training images, labelled by an sgan; compare them on the test "
        "set after their last update. Write record.json, accuracies.png, "
        "samples.png (a row for each class) and images/CLASS/00000.png, generated with the first "
        "seed, as 'folder:PATH' and torchvision's ImageFolder read them.",
    )
    parser.set_defaults(run=run)
    protocol = add_experiment(
        parser, AugmentOptions, GeneratorOptions, seeds=(0, 1, 2, 3, 4), out="runs/augment"
    )
    add = protocol.add_argument
    add("--image-size", type=int, choices=IMAGE_SIZES, default=IMAGE_SIZE,
        help=f"side of the images in pixels (default: {IMAGE_SIZE})")  # fmt: skip
    add("--labels", type=positive, default=100, help="labelled images (default: 100)")


def run(args: argparse.Namespace) -> int:
    """Compare, print a table and write the files."""
    require(*NEEDED_PACKAGES)
    generator = GeneratorOptions(**chosen(args, GeneratorOptions))
    options = AugmentOptions(args.labels, **chosen(args, AugmentOptions), generator=generator)
    experiment = Experiment("augment", args)
    data, out = experiment.data, experiment.out

    def measure(*, seed: int, progress: Steps) -> dict[str, Any]:
        result = run_seed(data, options, seed, device=experiment.device, progress=progress)
        if seed == args.seeds[0]:
            save_class_grid(result.images, result.labels, out / SAMPLES)
            save_image_folder(result.images, result.labels, data.classes, out / IMAGES)
        return {"accuracies": result.accuracies}

    def draw(record: Record) -> tuple[str, ...]:
        for row in record.table:
            if "generated" in row["method"]:
                print(_verdict(row, len(record.seeds)))
        plot_accuracies([record], out / PLOT)
        return FILES

    experiment.run(
        {"seed": args.seeds},
        measure,
        lambda rows: summarise([row["accuracies"] for row in rows]),
        draw,
        told=lambda row: row["accuracies"],
        names=NAMES,
        options={"image_size": args.image_size, **asdict(options)},
        files=FILES,
    )
    return 0


def _verdict(row: Mapping[str, Any], seeds: int) -> str:
    """Say whether generated images helped, as far as the seeds tell."""
    pair = f"{row['method']} over {row['compared with']}"
    if row["low"] is None:
        return f"{pair}: one seed has no interval, so whether it helps is open"
    told = "no difference shown"
    if row["low"] > 0:
        told = "a gain"
    elif row["high"] < 0:
        told = "a loss"
    return f"{pair}: {told} (95 % interval, paired over {seeds} seeds, Student's t)"
