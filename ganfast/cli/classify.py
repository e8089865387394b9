"""``ganfast classify``: what few labels and a GAN make of images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ganfast.applications.classify import METHODS, Options, check, classify
from ganfast.applications.classify.figures import plot_accuracy, plot_confusion
from ganfast.applications.labelled import LabelledData
from ganfast.applications.records import Record, mean_and_deviation
from ganfast.cli.errors import require
from ganfast.cli.experiment import Experiment, add_experiment
from ganfast.cli.options import chosen, positive
from ganfast.training.errors import counted
from ganfast.training.options import options_of
from ganfast.training.progress import Steps

__all__ = ["add_parser", "run", "updates"]

DEFAULT_STEPS = 5000
DEFAULT_EPOCHS = 40
"""Small sets are seen so often at most: digits are done within two minutes."""

NEEDED_PACKAGES = ("matplotlib", "torchvision", "tqdm")
CONFUSION, ACCURACY = "confusion.png", "accuracy.png"
NAMES = ("data", "root", "validation", "labels", "method", "seeds", "steps", "epochs", "device")


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
        help="sgan: the discriminator classifies; consistency: the same without a generator; "
        "features: linear classifier on a GAN's features; "
        "pixels: the same on pixels; supervised: the labels alone, with sgan's network (default: "
        "sgan supervised)",
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
    require(*NEEDED_PACKAGES, *(["sklearn"] if {"features", "pixels"} & {*args.method} else []))
    options = Options(**chosen(args, Options))
    experiment = Experiment("classify", args)
    data = experiment.data
    check(data, args.labels, args.seeds, options)
    steps = updates(args, len(data.train) // options.batch_size)
    others = [name for name, default, _ in options_of(Options) if getattr(options, name) != default]

    def measure(*, progress: Steps, **each: Any) -> dict[str, Any]:
        return asdict(classify(data, **each, steps=steps, options=options, progress=progress,
                               device=experiment.device))  # fmt: skip

    experiment.run(
        {"labels": args.labels, "method": args.method, "seed": args.seeds},
        measure,
        _table,
        lambda record: _draw(record, data, experiment.out),
        told=lambda row: {"accuracy": row["accuracy"]},
        names=[*NAMES, *others],
        options={"steps": steps, **asdict(options)},
        files=(CONFUSION, ACCURACY),
    )
    return 0


def updates(args: argparse.Namespace, per_epoch: int) -> int:
    """Return how many updates a training has, from the arguments and the updates of an epoch."""
    if args.epochs:
        return int(args.epochs) * per_epoch
    return args.steps or min(DEFAULT_STEPS, DEFAULT_EPOCHS * per_epoch)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each number of labels and method, over the seeds."""
    table = []
    for labels, method in dict.fromkeys((row["labels"], row["method"]) for row in rows):
        own = [row for row in rows if (row["labels"], row["method"]) == (labels, method)]
        accuracy, deviation = mean_and_deviation([row["accuracy"] for row in own])
        table.append(
            {
                "labels": labels,
                "method": method,
                "accuracy": accuracy,
                "deviation": deviation,
                "seeds": len(own),
                "seconds": sum(row["seconds"] for row in own),
            }
        )
    return table


def _draw(record: Record, data: LabelledData, out: Path) -> list[str]:
    """Draw, and return the names of the files; the confusion is the first method's."""
    labels, method = (record.seeds[0][name] for name in ("labels", "method"))
    source = f"{data.name} (validation)" if record.options["validation"] else data.name
    own = [row for row in record.seeds if (row["labels"], row["method"]) == (labels, method)]
    counts = torch.tensor([row["confusion"] for row in own]).sum(0)
    title = f"{source}, {method}, {labels} labels: {counted(len(own), 'seed')}"
    plot_confusion(counts, data.classes, title, out / CONFUSION)
    if len({row["labels"] for row in record.table}) == 1:
        return [CONFUSION]
    plot_accuracy(record.table, f"{source}: mean and deviation over seeds", out / ACCURACY)
    return [CONFUSION, ACCURACY]
