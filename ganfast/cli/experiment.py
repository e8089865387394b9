"""A run of an application that is repeated over seeds: its options, its data and its record."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from ganfast.applications.labelled import load_labelled
from ganfast.applications.records import Record
from ganfast.cli.options import Source, add_options, seed
from ganfast.cli.processes import own_device
from ganfast.training import keep_freed_memory

__all__ = ["Experiment", "add_device", "add_experiment", "each_once"]

RECORD = "record.json"
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


def each_once(values: Iterable[Any]) -> list[Any]:
    """Return the values in their order, without repetitions."""
    return list(dict.fromkeys(values))


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
        self.out = Path(args.out)

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
        seconds = round(perf_counter() - self._started, 1)
        record = Record(self._application, self._command(names), options, table, seeds, seconds)
        record.save(self.out / RECORD)
        return record

    def _command(self, names: Iterable[str]) -> str:
        """Return the command that does the same again, without where files lie on this machine."""
        words = ["ganfast", self._application]
        for name in names:
            value = "PATH" if name == "root" and self._args.root else getattr(self._args, name)
            if value:
                words.append(f"--{name.replace('_', '-')}")
                words += map(str, value if isinstance(value, list | tuple) else [value])
        return shlex.join(words)
