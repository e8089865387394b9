"""``ganfast augment``: do generated images help a classifier that has few labels?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
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
from ganfast.applications.records import Record
from ganfast.cli.errors import CommandError, output_folder, require
from ganfast.cli.experiment import (
    Experiment,
    add_device,
    add_experiment,
    add_validation_and_resume,
    described,
    progress_bar,
    with_deviation,
)
from ganfast.cli.options import chosen, positive
from ganfast.models.dcgan import IMAGE_SIZES

__all__ = ["add_parser", "run"]

IMAGE_SIZE = 16  # enough for digits, and four times as fast as 32
NEEDED_PACKAGES = ("torchvision", "scipy", "matplotlib", "tqdm")
FILES = ("record.json", "accuracies.png", "samples.png", "images")
NAMES = ("data", "root", "validation", "labels", "image_size", "per_class", "updates",
         "gan_updates", "pseudo_updates", "width", "seeds")  # fmt: skip


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
    add_device(protocol)
    add_validation_and_resume(protocol)
    add = protocol.add_argument
    add("--image-size", type=int, choices=IMAGE_SIZES, default=IMAGE_SIZE,
        help=f"side of the images in pixels (default: {IMAGE_SIZE})")  # fmt: skip
    add("--labels", type=positive, default=100, help="labelled images (default: 100)")


def run(args: argparse.Namespace) -> int:
    """Compare, print a table and write the files."""
    require(*NEEDED_PACKAGES)
    if len(set(args.seeds)) < len(args.seeds):
        raise CommandError(f"--seeds must differ, got {' '.join(map(str, args.seeds))}")
    generator = GeneratorOptions(**chosen(args, GeneratorOptions))
    options = AugmentOptions(args.labels, **chosen(args, AugmentOptions), generator=generator)
    experiment = Experiment("augment", args)
    out = experiment.out
    recorded = {
        "data": args.data,
        "validation": args.validation,
        "image_size": args.image_size,
        **asdict(options),
    }
    rows = [row for row in experiment.finished(recorded) if row["seed"] in args.seeds]
    made: SeedResult | None = None  # an earlier run has drawn its own

    def record() -> Record:
        return experiment.record(
            NAMES, recorded, summarise([row["accuracies"] for row in rows]), rows
        )

    with output_folder(out, *FILES):
        for result in _run_seeds(experiment, options, args.seeds, {row["seed"] for row in rows}):
            made = made or result
            rows.append({"seed": result.seed, "accuracies": result.accuracies})
            record()  # a later interruption loses no finished seed
        last = record()
        plot_accuracies([last], out / "accuracies.png")
        if made:
            save_class_grid(made.images, made.labels, out / "samples.png")
            save_image_folder(made.images, made.labels, experiment.data.classes, out / "images")
    _print_table(last.table, len(rows))
    print(f"wrote {', '.join(FILES if made else FILES[:2])} to {args.out}")
    return 0


def _run_seeds(
    experiment: Experiment, options: AugmentOptions, seeds: Sequence[int], finished: Set[int]
) -> Iterator[SeedResult]:
    data = experiment.data
    print(
        f"{data.name}: {options.labels} of {len(data.train)} labels, {len(data.test)} test images, "
        f"{described(data.classes)}, on {experiment.device}"
    )
    for seed in seeds:
        if seed not in finished:
            result = run_seed(data, options, seed, device=experiment.device, progress=progress_bar)
            found = (f"{name} {value:.4f}" for name, value in result.accuracies.items())
            print(f"seed {seed}: {'; '.join(found)}", flush=True)
            yield result


def _print_table(rows: Sequence[Mapping[str, Any]], seeds: int) -> None:
    print(f"{'classifier trained on':25} {'accuracy':>15} {'difference':>11} {'95 % interval':>18}")
    for row in rows:
        figures = with_deviation(row["accuracy"], row["deviation"], seeds)
        line = f"{row['method']:25} {figures:<15}"
        if row["difference"] is not None:
            line += f" {row['difference']:+11.4f}"
        if row["low"] is not None:
            interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
            line += f" {interval:>18}"
        print(line.rstrip())
    for row in rows:
        if "generated" in row["method"]:
            print(_verdict(row, seeds))


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
    return f"{pair}: {told} (paired over {seeds} seeds, Student's t)"
