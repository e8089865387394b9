"""``ganfast classify``: what few labels and a GAN make of images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ganfast.applications.classify import METHODS, Options, Outcome, check, classify
from ganfast.applications.classify.figures import plot_accuracy, plot_confusion
from ganfast.applications.records import Record, mean_and_deviation
from ganfast.cli.errors import in_one_line, require
from ganfast.cli.experiment import Experiment, add_device, add_experiment, each_once
from ganfast.cli.options import chosen, positive

__all__ = ["add_parser", "run", "updates"]

DEFAULT_STEPS = 4000
DEFAULT_EPOCHS = 40
"""Small sets are seen so often at most: digits are done within two minutes."""

NEEDED_PACKAGES = ("matplotlib", "torchvision", "tqdm")
NAMES = ("data", "root", "labels", "method", "seeds", "steps", "epochs", "image_size", "width",
         "batch_size", "device")  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "classify",
        help="classify images of which few have labels",
        description="Give few images of a training set their labels, train on them and on all the "
        "others without, and count what is right on the test set after the last update. --out gets "
        "record.json, confusion.png and, for several numbers of labels, accuracy.png.",
    )
    parser.set_defaults(run=run)
    protocol = add_experiment(parser, Options, seeds=(0, 1, 2), out="runs/classify")
    add_device(protocol)
    protocol.add_argument(
        "--labels",
        type=positive,
        nargs="+",
        default=[100],
        metavar="COUNT",
        help="how many images have a label, one or several numbers (default: 100)",
    )
    protocol.add_argument(
        "--method",
        choices=METHODS,
        nargs="+",
        default=["sgan", "supervised"],
        help="sgan: the discriminator classifies; acgan: it also tells real from generated; "
        "features: linear classifier on a GAN's features; supervised: the labels alone, with "
        "sgan's network (default: sgan supervised)",
    )
    length = protocol.add_mutually_exclusive_group()
    length.add_argument(
        "--steps",
        type=positive,
        help=f"updates (default: {DEFAULT_STEPS}, but at most {DEFAULT_EPOCHS} epochs)",
    )
    length.add_argument("--epochs", type=positive, help="passes over the data, instead of --steps")


def run(args: argparse.Namespace) -> int:
    """Train, print a table and write the files."""
    require(*NEEDED_PACKAGES, *(["sklearn"] if "features" in args.method else []))
    for name in ("labels", "method", "seeds"):
        setattr(args, name, each_once(getattr(args, name)))
    options = Options(**chosen(args, Options))
    with in_one_line(args.out):
        experiment = Experiment("classify", args)
        check(experiment.data, args.labels, args.seeds, options)
        experiment.out.mkdir(parents=True, exist_ok=True)
        steps = updates(args, len(experiment.data.train) // options.batch_size)
        outcomes = _outcomes(args, experiment, steps, options)
        table = _table(outcomes)
        record = experiment.record(
            NAMES,
            {"steps": steps, "device": str(experiment.device), **asdict(options)},
            table,
            [_row(outcome) for outcome in outcomes],
        )
        print(_as_text(table))
        files = _draw(record, outcomes, experiment)
    print(f"see {', '.join(map(str, files))}")
    return 0


def updates(args: argparse.Namespace, per_epoch: int) -> int:
    """Return how many updates a training has, from the arguments and the updates of an epoch."""
    if args.epochs:
        return int(args.epochs) * per_epoch
    return args.steps or min(DEFAULT_STEPS, DEFAULT_EPOCHS * per_epoch)


def _outcomes(
    args: argparse.Namespace, experiment: Experiment, steps: int, options: Options
) -> list[Outcome]:
    """Train everything asked for, and print each result as it comes."""
    from tqdm import tqdm

    data = experiment.data
    print(
        f"{data.name}: {len(data.train)} images to train on, {len(data.test)} to test on, "
        f"{len(data.classes)} classes; {steps} updates a training, on {experiment.device}",
        flush=True,
    )

    def progress(title: str, steps: int) -> Iterator[int]:
        return iter(tqdm(range(steps), desc=title, leave=False, mininterval=0.5))

    outcomes = []
    for outcome in classify(
        data, args.method, args.labels, args.seeds, steps, options,
        device=experiment.device, progress=progress,
    ):  # fmt: skip
        outcomes.append(outcome)
        print(
            f"{outcome.method}, {outcome.labels} labels, seed {outcome.seed}: "
            f"{outcome.accuracy:.4f} in {outcome.seconds:.0f} s",
            flush=True,
        )
    return outcomes


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


def _draw(record: Record, outcomes: Sequence[Outcome], experiment: Experiment) -> list[Path]:
    """Draw the pictures, and return all files; the confusion is the first method's."""
    data, files = (
        experiment.data,
        [experiment.out / "record.json", experiment.out / "confusion.png"],
    )
    first = outcomes[0]
    own = [o for o in outcomes if (o.labels, o.method) == (first.labels, first.method)]
    title = f"{data.name}, {first.method}, {first.labels} labels: {len(own)} seeds together"
    counts = torch.stack([o.confusion for o in own]).sum(0)
    plot_confusion(counts, data.classes, title, files[1])
    if len({o.labels for o in outcomes}) > 1:
        files.append(experiment.out / "accuracy.png")
        plot_accuracy(record.table, f"{data.name}: mean and deviation over seeds", files[-1])
    return files
