"""``ganfast augment``: do generated images help a classifier that has few labels?"""

from __future__ import annotations

import argparse
import time
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
from ganfast.applications.labelled import LabelledData, load_labelled
from ganfast.applications.records import Record
from ganfast.cli.errors import CommandError, require
from ganfast.cli.options import add_data_options, positive, seed
from ganfast.cli.processes import own_device
from ganfast.models.dcgan import IMAGE_SIZES
from ganfast.training import DataError, DivergenceError, keep_freed_memory

__all__ = ["add_parser", "run"]

SEEDS = (0, 1, 2, 3, 4)
IMAGE_SIZE = 16  # enough for digits, and four times as fast as 32
NEEDED_PACKAGES = ("torchvision", "scipy", "matplotlib")


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
    add_data_options(parser)
    default, gan = AugmentOptions(labels=1), GeneratorOptions()
    add = parser.add_argument
    add("--image-size", type=int, choices=IMAGE_SIZES, default=IMAGE_SIZE,
        help=f"side of the images in pixels (default: {IMAGE_SIZE})")  # fmt: skip
    add("--labels", type=positive, default=100, help="labelled images (default: 100)")
    add("--seeds", type=seed, nargs="+", default=list(SEEDS), metavar="SEED",
        help="a comparison each (default: 0 1 2 3 4)")  # fmt: skip
    add("--out", metavar="PATH", default="runs/augment", help="default: runs/augment")
    add("--per-class", type=positive, default=default.per_class, metavar="IMAGES",
        help=f"generated images of each class (default: {default.per_class})")  # fmt: skip
    add("--updates", type=positive, default=default.updates,
        help=f"of each classifier (default: {default.updates})")  # fmt: skip
    add("--gan-updates", type=positive, default=gan.updates, metavar="UPDATES",
        help=f"of the conditional DCGAN (default: {gan.updates})")  # fmt: skip
    add("--width", type=positive, default=gan.width,
        help=f"feature maps of the DCGAN beside the image (default: {gan.width})")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, print a table and write the files."""
    require(*NEEDED_PACKAGES)
    if len(set(args.seeds)) < len(args.seeds):
        raise CommandError(f"--seeds must differ, got {' '.join(map(str, args.seeds))}")
    out = Path(args.out)
    if (out / "images").exists():
        raise CommandError(f"{out / 'images'} is there already; remove it or give another --out")
    options = AugmentOptions(
        labels=args.labels,
        per_class=args.per_class,
        updates=args.updates,
        generator=GeneratorOptions(updates=args.gan_updates, width=args.width),
    )
    begun = time.perf_counter()
    try:
        data = load_labelled(
            args.data, root=args.root, download=args.download, image_size=args.image_size
        )
        out.mkdir(parents=True, exist_ok=True)
        results = _run_seeds(data, options, args)
        rows = summarise([result.accuracies for result in results])
        record = Record(
            application="augment",
            command=_command(args),
            options={"data": args.data, "image_size": args.image_size, **asdict(options)},
            table=rows,
            seeds=[{"seed": r.seed, "accuracies": r.accuracies} for r in results],
            seconds=time.perf_counter() - begun,
        )
        record.save(out / "record.json")
        plot_accuracies([record], out / "accuracies.png")
        first = results[0]
        save_class_grid(first.images, first.labels, out / "samples.png")
        save_image_folder(first.images, first.labels, data.classes, out / "images")
    except (DataError, DivergenceError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot write to --out {out}: {error}") from error
    _print_table(rows, len(results))
    print(f"wrote record.json, accuracies.png, samples.png and images to {out}")
    return 0


def _run_seeds(
    data: LabelledData, options: AugmentOptions, args: argparse.Namespace
) -> list[SeedResult]:
    device = own_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    print(
        f"{data.name}: {options.labels} of {len(data.train)} labels, {len(data.test)} test images, "
        f"{len(data.classes)} classes, on {device}"
    )
    results = []
    for number in args.seeds:
        results.append(run_seed(data, options, number, device=device))
        found = (f"{name} {value:.4f}" for name, value in results[-1].accuracies.items())
        print(f"seed {number}: {'; '.join(found)}", flush=True)
    return results


def _command(args: argparse.Namespace) -> str:
    words = f"ganfast augment --data {args.data} --labels {args.labels}"
    words += f" --image-size {args.image_size} --per-class {args.per_class}"
    words += f" --updates {args.updates} --gan-updates {args.gan_updates} --width {args.width}"
    return f"{words} --seeds {' '.join(map(str, args.seeds))}"


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
