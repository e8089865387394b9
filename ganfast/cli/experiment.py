"""A run of an application that is repeated over seeds: its options, its data and its record."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from ganfast.applications.labelled import for_validation, load_labelled
from ganfast.applications.records import Record
from ganfast.cli.errors import CommandError
from ganfast.cli.options import Source, add_options, positive, seed
from ganfast.cli.processes import own_device
from ganfast.training import keep_freed_memory

__all__ = [
    "Experiment",
    "add_device",
    "add_experiment",
    "add_validation_and_resume",
    "described",
    "each_once",
    "progress_bar",
    "with_deviation",
]

RECORD = "record.json"
NAMED_CLASSES = 5
OUT_OR_CSV = "folder to write to; with --score a CSV file"


def add_experiment(
    parser: argparse.ArgumentParser, *options: Any, seeds: Sequence[int], out: str | None
) -> argparse._ArgumentGroup:
    """Declare data, seeds, the folder to write to, and the options of dataclasses.

    Returns:
        The group of the protocol, for what only one command has.
    """
    add_options(parser.add_argument_group("data"), Source)
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--seeds",
        type=seed,
        nargs="+",
        default=list(seeds),
        metavar="SEED",
        help=f"seeds of one repetition each (default: {' '.join(map(str, seeds))})",
    )
    where = f"folder to write to (default: {out})" if out else OUT_OR_CSV
    protocol.add_argument("--out", metavar="PATH", default=out, required=out is None, help=where)
    training = parser.add_argument_group("training")
    for each in options:
        add_options(training, each)
    return protocol


def add_device(container: argparse._ActionsContainer) -> None:
    """Declare the device."""
    container.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)"
    )


def add_validation_and_resume(container: argparse._ActionsContainer) -> None:
    """Declare how settings are chosen, and how an interrupted run goes on."""
    container.add_argument(
        "--validation",
        type=positive,
        metavar="IMAGES",
        help="test on so many images held out of the training set, to choose settings by (default: "
        "on the test set)",
    )
    container.add_argument(
        "--resume",
        action="store_true",
        help="keep what --out has of a run with the same options, interrupted or with fewer seeds",
    )


def progress_bar(title: str, steps: int) -> Iterator[int]:
    """Yield the numbers of the steps, and show how many are done and the time that is left."""
    from tqdm import tqdm

    return iter(tqdm(range(steps), desc=title, leave=False, mininterval=0.5))


def each_once(values: Iterable[Any]) -> list[Any]:
    """Return the values in their order, without repetitions."""
    return list(dict.fromkeys(values))


def described(classes: Sequence[str]) -> str:
    """Return the number of classes, and their names if they are few."""
    names = f" ({', '.join(classes)})" if len(classes) <= NAMED_CLASSES else ""
    return f"{len(classes)} classes{names}"


def with_deviation(mean: float, deviation: float, seeds: int) -> str:
    """Return a mean and its deviation over the seeds; of one seed there is none."""
    return f"{mean:.4f} ± {deviation:.4f}" if seeds > 1 else f"{mean:.4f}"


class Experiment:
    """Data, device and folder of one run, and the record that it leaves.

    Args:
        application: the name of the command.
        args: its parsed arguments.

    Raises:
        CommandError: the device is not available.
        DataError: the data cannot be read.
        OSError: the folder cannot be made.
    """

    def __init__(self, application: str, args: argparse.Namespace) -> None:
        self._application = application
        self._args = args
        self._started = perf_counter()
        self.device = own_device(getattr(args, "device", "cpu"))
        if self.device.type == "cpu":
            keep_freed_memory()
        self.data = load_labelled(
            args.data, root=args.root, download=args.download, image_size=args.image_size
        )
        if getattr(args, "validation", None):
            self.data = for_validation(self.data, args.validation)
        self.out = Path(args.out)
        self._earlier_seconds = 0.0

    def finished(self, options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the single measurements of an earlier run, with ``--resume``; else none.

        Args:
            options: of this run, as its record will have them.

        Raises:
            CommandError: the earlier run had other options, or left no record.
        """
        path = self.out / RECORD
        if not self._args.resume or not path.exists():
            return []
        try:
            record = Record.load(path)
        except ValueError as error:
            raise CommandError(f"--resume: {error}") from error
        now = json.loads(json.dumps(options))
        names = {*now, *record.options}
        other = sorted(n for n in names if now.get(n) != record.options.get(n))
        if record.application != self._application or other:
            raise CommandError(
                f"--resume: {path} was measured with other options ({', '.join(other)}); give "
                "those, or another --out"
            )
        self._earlier_seconds = record.seconds
        return list(record.seeds)

    def record(
        self,
        names: Iterable[str],
        options: Mapping[str, Any],
        table: Sequence[Mapping[str, Any]],
        seeds: Sequence[Mapping[str, Any]],
    ) -> Record:
        """Write the record of what was measured so far, and return it.

        Args:
            names: of the arguments that the recorded command gives, if they are set.
            options: of the run.
            table: what README shows.
            seeds: what the table was made of.
        """
        seconds = round(self._earlier_seconds + perf_counter() - self._started, 1)
        record = Record(self._application, self._command(names), options, table, seeds, seconds)
        record.save(self.out / RECORD)
        return record

    def _command(self, names: Iterable[str]) -> str:
        """Return the command that does the same again, without where files lie on this machine."""
        words = ["ganfast", self._application]
        for name in names:
            value = "PATH" if name == "root" and self._args.root else getattr(self._args, name)
            if value is not None and value is not False:
                words.append(f"--{name.replace('_', '-')}")
                words += map(str, value if isinstance(value, list | tuple) else [value])
        return shlex.join(words)
