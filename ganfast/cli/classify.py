"""``ganfast classify``: what few labels and a GAN make of images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ganfast.applications.classify import METHODS, Options, Outcome, check, classify
from ganfast.applications.classify.figures import plot_accuracy, plot_confusion
from ganfast.applications.records import Record, mean_and_deviation
from ganfast.cli.errors import output_folder, require
from ganfast.cli.experiment import (
    Experiment,
    add_device,
    add_experiment,
    add_validation_and_resume,
    described,
    each_once,
    progress_bar,
)
from ganfast.cli.options import chosen, positive
from ganfast.training.errors import counted
from ganfast.training.options import options_of

__all__ = ["add_parser", "run", "updates"]

DEFAULT_STEPS = 1500
DEFAULT_EPOCHS = 40
"""Small sets are seen so often at most: digits are done within two minutes."""

NEEDED_PACKAGES = ("matplotlib", "torchvision", "tqdm")
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
    add_device(protocol)
    add_validation_and_resume(protocol)
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
    for name in ("labels", "method", "seeds"):
        setattr(args, name, each_once(getattr(args, name)))
    options = Options(**chosen(args, Options))
    experiment = Experiment("classify", args)
    check(experiment.data, args.labels, args.seeds, options)
    steps = updates(args, len(experiment.data.train) // options.batch_size)
    recorded = {
        "data": args.data,
        "validation": args.validation,
        "steps": steps,
        "device": str(experiment.device),
        **asdict(options),
    }
    outcomes = _wanted(experiment.finished(recorded), args)

    others = [name for name, default, _ in options_of(Options) if getattr(options, name) != default]

    def record() -> Record:
        rows = [_row(outcome) for outcome in outcomes]
        return experiment.record([*NAMES, *others], recorded, _table(outcomes), rows)

    with output_folder(experiment.out, "record.json", "confusion.png", "accuracy.png"):
        for outcome in _trained(args, experiment, steps, options, outcomes):
            outcomes.append(outcome)
            record()  # a later interruption loses no finished training
        last = record()
        print(_as_text(last.table))
        files = _draw(last, outcomes, experiment)
    print(f"see {', '.join(map(str, files))}")
    return 0


def _wanted(rows: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> list[Outcome]:
    """Return the outcomes of an earlier run that this one asks for too."""
    outcomes = [Outcome(**{**row, "confusion": torch.tensor(row["confusion"])}) for row in rows]
    return [
        o for o in outcomes
        if o.labels in args.labels and o.method in args.method and o.seed in args.seeds
    ]  # fmt: skip


def updates(args: argparse.Namespace, per_epoch: int) -> int:
    """Return how many updates a training has, from the arguments and the updates of an epoch."""
    if args.epochs:
        return int(args.epochs) * per_epoch
    return args.steps or min(DEFAULT_STEPS, DEFAULT_EPOCHS * per_epoch)


def _trained(
    args: argparse.Namespace,
    experiment: Experiment,
    steps: int,
    options: Options,
    earlier: Sequence[Outcome],
) -> Iterator[Outcome]:
    """Train everything asked for that was not trained earlier, and print each result."""
    data = experiment.data
    print(
        f"{data.name}: {counted(len(data.train), 'image')} to train on, {len(data.test)} to test "
        f"on, {described(data.classes)}; {counted(steps, 'update')} a training, on "
        f"{experiment.device}",
        flush=True,
    )
    for outcome in classify(
        data, args.method, args.labels, args.seeds, steps, options, device=experiment.device,
        progress=progress_bar, finished={(o.method, o.labels, o.seed) for o in earlier},
    ):  # fmt: skip
        print(
            f"{outcome.method}, {outcome.labels} labels, seed {outcome.seed}: "
            f"{outcome.accuracy:.4f} in {outcome.seconds:.0f} s",
            flush=True,
        )
        yield outcome


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


def _as_text(table: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'labels':>7}  {'method':<10}  {'accuracy':>8}  {'deviation':>9}  seeds  seconds"]
    lines += [
        f"{row['labels']:>7}  {row['method']:<10}  {row['accuracy']:>8.4f}  "
        f"{_deviation(row):>9}  {row['seeds']:>5}  {row['seconds']:>7.0f}"
        for row in table
    ]
    return "\n".join(lines)


def _deviation(row: Mapping[str, Any]) -> str:
    return f"{row['deviation']:.4f}" if row["seeds"] > 1 else ""


def _draw(record: Record, outcomes: Sequence[Outcome], experiment: Experiment) -> list[Path]:
    """Draw the pictures, and return all files; the confusion is the first method's."""
    data, files = (
        experiment.data,
        [experiment.out / "record.json", experiment.out / "confusion.png"],
    )
    first = outcomes[0]
    source = f"{data.name} (validation)" if record.options["validation"] else data.name
    own = [o for o in outcomes if (o.labels, o.method) == (first.labels, first.method)]
    title = f"{source}, {first.method}, {first.labels} labels: {counted(len(own), 'seed')}"
    counts = torch.stack([o.confusion for o in own]).sum(0)
    plot_confusion(counts, data.classes, title, files[1])
    if len({o.labels for o in outcomes}) > 1:
        files.append(experiment.out / "accuracy.png")
        plot_accuracy(record.table, f"{source}: mean and deviation over seeds", files[-1])
    return files
