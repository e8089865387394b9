"""``ganfast augment``: do generated images help a classifier that has few labels?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ganfast.applications.augment import (
    AugmentOptions,
    GeneratorOptions,
    SeedResult,
    plot_accuracies,
    run_seed,
    save_class_grid,
    save_image_folder,
    summarise,
)
from ganfast.cli.errors import CommandError, in_one_line, require
from ganfast.cli.experiment import Experiment, add_device, add_experiment
from ganfast.cli.options import chosen, positive
from ganfast.models.dcgan import IMAGE_SIZES

__all__ = ["add_parser", "run"]

IMAGE_SIZE = 16  # enough for digits, and four times as fast as 32
NEEDED_PACKAGES = ("torchvision", "scipy", "matplotlib")
NAMES = ("data", "labels", "image_size", "per_class", "updates", "gan_updates", "width", "seeds")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "augment",
        help="train a classifier with and without generated images",
        description="Train a conditional DCGAN on few labelled images, and classifiers on those "
        "images, on generated ones, on both, and on the labelled ones moved at random; compare "
        "them on the test set after their last update. Write record.json, accuracies.png, "
        "samples.png (a row for each class) and images/CLASS/00000.png, generated with the first "
        "seed, as 'folder:PATH' and torchvision's ImageFolder read them.",
    )
    parser.set_defaults(run=run)
    protocol = add_experiment(
        parser, AugmentOptions, GeneratorOptions, seeds=(0, 1, 2, 3, 4), out="runs/augment"
    )
    add_device(protocol)
    add = protocol.add_argument
    add("--image-size", type=int, choices=IMAGE_SIZES, default=IMAGE_SIZE,
        help=f"side of the images in pixels (default: {IMAGE_SIZE})")  # fmt: skip
    add("--labels", type=positive, default=100, help="labelled images (default: 100)")


def run(args: argparse.Namespace) -> int:
    """Compare, print a table and write the files."""
    require(*NEEDED_PACKAGES)
    if len(set(args.seeds)) < len(args.seeds):
        raise CommandError(f"--seeds must differ, got {' '.join(map(str, args.seeds))}")
    images = Path(args.out) / "images"
    if images.exists():
        raise CommandError(f"{images} is there already; remove it or give another --out")
    generator = GeneratorOptions(**chosen(args, GeneratorOptions))
    options = AugmentOptions(args.labels, **chosen(args, AugmentOptions), generator=generator)
    with in_one_line(args.out):
        experiment = Experiment("augment", args)
        experiment.out.mkdir(parents=True, exist_ok=True)
        results = _run_seeds(experiment, options, args.seeds)
        rows = summarise([result.accuracies for result in results])
        record = experiment.record(
            NAMES,
            {"data": args.data, "image_size": args.image_size, **asdict(options)},
            rows,
            [{"seed": r.seed, "accuracies": r.accuracies} for r in results],
        )
        plot_accuracies([record], experiment.out / "accuracies.png")
        first = results[0]
        save_class_grid(first.images, first.labels, experiment.out / "samples.png")
        save_image_folder(first.images, first.labels, experiment.data.classes, images)
    _print_table(rows, len(results))
    print(f"wrote record.json, accuracies.png, samples.png and images to {args.out}")
    return 0


def _run_seeds(
    experiment: Experiment, options: AugmentOptions, seeds: Sequence[int]
) -> list[SeedResult]:
    data = experiment.data
    print(
        f"{data.name}: {options.labels} of {len(data.train)} labels, {len(data.test)} test images, "
        f"{len(data.classes)} classes, on {experiment.device}"
    )
    results = []
    for seed in seeds:
        results.append(run_seed(data, options, seed, device=experiment.device))
        found = (f"{name} {value:.4f}" for name, value in results[-1].accuracies.items())
        print(f"seed {seed}: {'; '.join(found)}", flush=True)
    return results


def _print_table(rows: Sequence[Mapping[str, Any]], seeds: int) -> None:
    print(f"{'classifier trained on':22} {'accuracy':>15} {'difference':>11} {'95 % interval':>18}")
    for row in rows:
        line = f"{row['method']:22} {row['accuracy']:.4f} ± {row['deviation']:.4f}"
        if row["difference"] is not None:
            line += f" {row['difference']:+11.4f}"
        if row["low"] is not None:
            interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
            line += f" {interval:>18}"
        print(line)
    print(_verdict(rows[1], seeds))


def _verdict(row: Mapping[str, Any], seeds: int) -> str:
    """Say whether adding generated images helped, as far as the seeds tell."""
    if row["low"] is None:
        return "one seed has no interval: whether generated images help is open"
    told = "no difference shown"
    if row["low"] > 0:
        told = "a gain"
    elif row["high"] < 0:
        told = "a loss"
    return f"adding generated images: {told} (paired over {seeds} seeds, Student's t)"
