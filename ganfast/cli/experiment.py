"""Measurements of an application, repeated over seeds: options, data, the loop, the record."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from ganfast.applications.labelled import for_validation, load_labelled
from ganfast.applications.records import Record, as_text, command_line
from ganfast.cli.errors import CommandError, output_folder
from ganfast.cli.options import Source, add_options, positive, seed
from ganfast.cli.processes import own_device
from ganfast.training import keep_freed_memory
from ganfast.training.errors import counted
from ganfast.training.progress import progress_bars

__all__ = ["RECORD", "Experiment", "add_device", "add_experiment", "each_once"]

Row = Mapping[str, Any]

RECORD = "record.json"
NAMED_CLASSES = 5
OUT_OR_CSV = "folder to write to; with --score a CSV file"


def add_experiment(
    parser: argparse.ArgumentParser, *options: Any, seeds: Sequence[int], out: str | None
) -> argparse._ArgumentGroup:
    """Declare the options of :class:`Experiment`, and those of dataclasses.

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
    add_device(protocol)
    protocol.add_argument(
        "--validation",
        type=positive,
        metavar="IMAGES",
        help="test on so many images held out of the training set, to choose settings by (default: "
        "on the test set)",
    )
    protocol.add_argument(
        "--resume",
        action="store_true",
        help="go on in --out with a run of the same options, interrupted or with fewer seeds",
    )
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
    """Measurements that are repeated over seeds: their data, and the record that they leave.

    Of an option with several values, a repeated one is dropped.

    Args:
        application: the name of the command.
        args: its parsed arguments.

    Raises:
        CommandError: the device is not available.
        DataError: the data cannot be read.
    """

    def __init__(self, application: str, args: argparse.Namespace) -> None:
        self._application = application
        self._args = args
        self._started = perf_counter()
        for name, value in vars(args).items():
            if isinstance(value, list):
                setattr(args, name, each_once(value))
        self.device = own_device(args.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.data = load_labelled(
            args.data, root=args.root, download=args.download, image_size=args.image_size
        )
        if args.validation:
            self.data = for_validation(self.data, args.validation)
        self.out = Path(args.out)

    def run(
        self,
        over: Mapping[str, Sequence[Any]],
        measure: Callable[..., Row],
        table: Callable[[Sequence[Row]], Sequence[Row]],
        draw: Callable[[Record], Iterable[str]],
        *,
        told: Callable[[Row], Mapping[str, float]],
        names: Iterable[str],
        options: Row,
        files: Iterable[str],
    ) -> None:
        """Measure what no earlier run has measured, write the record each time, and draw.

        Figures are drawn when an interruption or an error ends the run, too.

        Args:
            over: the values of each thing that varies, such as the seed; the last varies fastest.
            measure: takes a value of each by its name, and ``progress``; returns a row of the
                record, in which these values are added.
            table: makes the record's table of its rows.
            draw: draws what is in a record, and returns the names of the files.
            told: returns the figures of a row that are printed.
            names: of the arguments that the recorded command gives, if they are set.
            options: of the run, for the record, beside those of every experiment.
            files: patterns of the names of what is written, beside the record.

        Raises:
            CommandError: the earlier run does not fit, or the folder cannot be written to.
        """
        options = {"data": self._args.data, "validation": self._args.validation,
                   "device": str(self.device), **options}  # fmt: skip
        command = command_line(["ganfast", self._application], vars(self._args), names)
        wanted = list(product(*over.values()))
        rows, seconds = self._earlier(list(over), wanted, options)
        left = [key for key in wanted if key not in rows]

        def save() -> Record:
            ordered = [rows[key] for key in wanted if key in rows]
            spent = round(seconds + perf_counter() - self._started, 1)
            record = Record(self._application, command, options, table(ordered), ordered, spent)
            record.save(self.out / RECORD)
            return record

        # What an earlier run left is set aside, unless this one goes on with it.
        with output_folder(self.out, *([] if rows else [RECORD, *files])):
            print(self._described(), flush=True)
            started = perf_counter()
            try:
                for done, key in enumerate(left, 1):
                    each, title = dict(zip(over, key, strict=True)), _title(over, key)
                    with progress_bars(f"{title} ({done} of {len(left)}): ") as progress:
                        rows[key] = {**each, **measure(**each, progress=progress)}
                    save()  # a later interruption loses no finished measurement
                    left_s = (perf_counter() - started) / done * (len(left) - done)
                    print(f"{title}: {_figures(told(rows[key]), left_s)}", flush=True)
            finally:
                if rows:
                    record = save()
                    _print(as_text(record.table))
                    drawn = draw(record)
                    print(f"wrote {', '.join([RECORD, *drawn])} to {self.out}")

    def _described(self) -> str:
        """Return the images, the classes with their names if they are few, and the device."""
        data, classes = self.data, self.data.classes
        names = f" ({', '.join(classes)})" if len(classes) <= NAMED_CLASSES else ""
        return (
            f"{data.name}: {counted(len(data.train), 'image')} to train on, {len(data.test)} to "
            f"test on, {len(classes)} classes{names}, on {self.device}"
        )

    def _earlier(
        self, names: Sequence[str], wanted: Collection[tuple[Any, ...]], options: Row
    ) -> tuple[dict[tuple[Any, ...], Row], float]:
        """Return the rows of an earlier run with ``--resume``, and its seconds; else none."""
        path = self.out / RECORD
        if not self._args.resume or not path.exists():
            return {}, 0.0
        try:
            record = Record.load(path)
        except ValueError as error:
            raise CommandError(f"--resume: {error}") from error
        now = json.loads(json.dumps(options))
        other = [name for name in sorted({*now, *record.options})
                 if now.get(name) != record.options.get(name)]  # fmt: skip
        if record.application != self._application or other:
            raise CommandError(
                f"--resume: {path} was measured with other options ({', '.join(other)}); give "
                "those, or another --out"
            )
        rows = {tuple(row[name] for name in names): row for row in record.seeds}
        more = [key for key in rows if key not in wanted]
        if more:
            raise CommandError(
                f"--resume: {path} has what this run leaves out, such as {_title(names, more[0])}; "
                "ask for it too, or give another --out"
            )
        return rows, record.seconds


def _title(names: Iterable[str], values: Iterable[Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def _print(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _figures(told: Mapping[str, float], left_s: float) -> str:
    from tqdm import tqdm

    figures = "; ".join(f"{name} {value:.4f}" for name, value in told.items())
    return f"{figures}; about {tqdm.format_interval(left_s)} left" if left_s else figures
