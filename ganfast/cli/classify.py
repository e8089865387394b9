"""``ganfast classify``: what few labels and a GAN make of images."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ganfast.applications.classify import METHODS, Options, Outcome, check, classify
from ganfast.applications.classify.figures import plot_accuracy, plot_confusion
from ganfast.applications.labelled import LabelledData, load_labelled
from ganfast.applications.records import Record, mean_and_deviation
from ganfast.cli.errors import CommandError, require
from ganfast.cli.options import add_data_options, positive, seed
from ganfast.cli.processes import own_device
from ganfast.models.dcgan import IMAGE_SIZES
from ganfast.training import DataError, DivergenceError, keep_freed_memory

__all__ = ["add_parser", "run", "updates"]

DEFAULT_STEPS = 4000
DEFAULT_EPOCHS = 40
"""Small sets are seen so often at most: digits are done within two minutes."""

NEEDED_PACKAGES = ("matplotlib", "torchvision", "tqdm")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    default = Options()
    parser = subparsers.add_parser(
        "classify",
        help="classify images of which few have labels",
        description="Give few images of a training set their labels, train on them and on all the "
        "others without, and count what is right on the test set after the last update. --out gets "
        "record.json, confusion.png and, for several numbers of labels, accuracy.png.",
    )
    parser.set_defaults(run=run)
    add_data_options(parser)
    add = parser.add_argument_group("protocol").add_argument
    add(
        "--labels",
        type=positive,
        nargs="+",
        default=[100],
        metavar="COUNT",
        help="how many images have a label, one or several numbers (default: 100)",
    )
    add(
        "--method",
        choices=METHODS,
        nargs="+",
        default=["sgan", "supervised"],
        help="sgan: the discriminator classifies; acgan: it also tells real from generated; "
        "features: linear classifier on a GAN's features; supervised: the labels alone, with "
        "sgan's network (default: sgan supervised)",
    )
    add("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="of everything (default: 0 1 2)")
    add("--out", metavar="PATH", default="runs/classify", help="default: runs/classify")
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--steps",
        type=positive,
        help=f"updates (default: {DEFAULT_STEPS}, but at most {DEFAULT_EPOCHS} epochs)",
    )
    length.add_argument("--epochs", type=positive, help="passes over the data, instead of --steps")
    add = group.add_argument
    add(
        "--image-size",
        type=int,
        choices=IMAGE_SIZES,
        default=default.image_size,
        metavar="PIXELS",
        help=f"side of the images: {', '.join(map(str, IMAGE_SIZES))} "
        f"(default: {default.image_size})",
    )
    add("--width", type=positive, default=default.width, help=f"default: {default.width}")
    add(
        "--batch-size",
        type=positive,
        default=default.batch_size,
        help=f"default: {default.batch_size}",
    )
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")


def run(args: argparse.Namespace) -> int:
    """Train, print a table and write the files."""
    require(*NEEDED_PACKAGES, *(["sklearn"] if "features" in args.method else []))
    start = perf_counter()
    for name in ("labels", "method", "seeds"):  # each once, in the order given
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    out = Path(args.out)
    options = Options(image_size=args.image_size, width=args.width, batch_size=args.batch_size)
    try:
        device = own_device(args.device)
        data = load_labelled(
            args.data, root=args.root, download=args.download, image_size=args.image_size
        )
        check(data, args.labels, args.seeds, options)
        out.mkdir(parents=True, exist_ok=True)
        steps = updates(args, len(data.train) // options.batch_size)
        outcomes = _outcomes(args, data, steps, options, device)
        table = _table(outcomes)
        record = Record(
            "classify",
            _command(args),
            {"steps": steps, "device": str(device), **asdict(options)},
            table,
            [_row(outcome) for outcome in outcomes],
            perf_counter() - start,
        )
        print(_as_text(table))
        files = _save(record, outcomes, data, out)
    except (DataError, DivergenceError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot write to --out {out}: {error}") from error
    print(f"see {', '.join(map(str, files))}")
    return 0


def updates(args: argparse.Namespace, per_epoch: int) -> int:
    """Return how many updates a training has, of what was asked for and an epoch's."""
    if args.epochs:
        return int(args.epochs) * per_epoch
    return args.steps or min(DEFAULT_STEPS, DEFAULT_EPOCHS * per_epoch)


def _outcomes(
    args: argparse.Namespace,
    data: LabelledData,
    steps: int,
    options: Options,
    device: torch.device,
) -> list[Outcome]:
    """Train everything asked for, and say each result as it comes."""
    from tqdm import tqdm

    print(
        f"{data.name}: {len(data.train)} images to train on, {len(data.test)} to test on, "
        f"{len(data.classes)} classes; {steps} updates a training, on {device}",
        flush=True,
    )
    if device.type == "cpu":
        keep_freed_memory()

    def progress(title: str, steps: int) -> Iterator[int]:
        return iter(tqdm(range(steps), desc=title, leave=False, mininterval=0.5))

    outcomes = []
    for outcome in classify(
        data, args.method, args.labels, args.seeds, steps, options,
        device=device, progress=progress,
    ):  # fmt: skip
        outcomes.append(outcome)
        print(
            f"{outcome.method}, {outcome.labels} labels, seed {outcome.seed}: "
            f"{outcome.accuracy:.4f} in {outcome.seconds:.0f} s",
            flush=True,
        )
    return outcomes


def _command(args: argparse.Namespace) -> str:
    """Return the command that does the same again, without where files lie on this machine."""
    words = ["ganfast", "classify", "--data", args.data]
    if args.root:
        words += ["--root", "PATH"]
    words += ["--labels", *args.labels, "--method", *args.method, "--seeds", *args.seeds]
    for name in ("steps", "epochs", "image_size", "width", "batch_size", "device"):
        if getattr(args, name):
            words += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return shlex.join(map(str, words))


def _row(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), "confusion": outcome.confusion.tolist()}


def _table(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return a row for each number of labels and method, over the seeds."""
    rows = []
    for labels, method in dict.fromkeys((o.labels, o.method) for o in outcomes):
        own = [o for o in outcomes if (o.labels, o.method) == (labels, method)]
        accuracy, deviation = mean_and_deviation([o.accuracy for o in own])
        seconds = sum(o.seconds for o in own)
        rows.append(
            {
                "labels": labels,
                "method": method,
                "accuracy": accuracy,
                "deviation": deviation,
                "seeds": len(own),
                "seconds": seconds,
            }
        )
    return rows


def _as_text(table: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'labels':>7}  {'method':<10}  {'accuracy':>8}  {'deviation':>9}  seeds  seconds"]
    lines += [
        f"{row['labels']:>7}  {row['method']:<10}  {row['accuracy']:>8.4f}  "
        f"{row['deviation']:>9.4f}  {row['seeds']:>5}  {row['seconds']:>7.0f}"
        for row in table
    ]
    return "\n".join(lines)


def _save(record: Record, outcomes: Sequence[Outcome], data: LabelledData, out: Path) -> list[Path]:
    """Write the record and the pictures; the confusion is the first method's, over all seeds."""
    files = [out / "record.json", out / "confusion.png"]
    record.save(files[0])
    first = outcomes[0]
    own = [o for o in outcomes if (o.labels, o.method) == (first.labels, first.method)]
    title = f"{data.name}, {first.method}, {first.labels} labels: {len(own)} seeds together"
    counts = torch.stack([o.confusion for o in own]).sum(0)
    plot_confusion(counts, data.classes, title, files[1])
    if len({o.labels for o in outcomes}) > 1:
        files.append(out / "accuracy.png")
        plot_accuracy(record.table, f"{data.name}: mean and deviation over seeds", files[-1])
    return files
