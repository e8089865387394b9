"""Records of what an application measured, from which tables are made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ganfast.machine import fingerprint
from ganfast.training.output import write_whole

__all__ = ["Record", "as_text", "command_line", "mean_and_deviation"]


@dataclass(frozen=True)
class Record:
    """One run of an application.

    Attributes:
        application: its name, such as "classify".
        command: that measures the same again.
        options: of the run.
        table: rows of one kind, column name to value: what README shows.
        seeds: single measurements, one for each seed, method or class.
        seconds: that the run took.
        machine: see ``ganfast.machine.fingerprint``.
    """

    application: str
    command: str
    options: Mapping[str, Any]
    table: Sequence[Mapping[str, Any]]
    seeds: Sequence[Mapping[str, Any]]
    seconds: float
    machine: Mapping[str, Any] = field(default_factory=fingerprint)

    def save(self, path: Path) -> None:
        """Write the record as JSON; interrupted, it leaves what was there."""
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read what ``save`` wrote.

        Raises:
            ValueError: it is no such file.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path.name} is no record of an application: {error}") from error


def command_line(words: Sequence[str], options: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the command that does the same again, without where files lie on this machine.

    Args:
        words: the command without options.
        options: parsed, by name.
        names: of those that the command gives, if they are set.

    Examples:
        >>> from ganfast.applications.records import command_line
        >>> options = {"root": "/home/me", "seeds": [0, 1], "paired": True, "steps": None}
        >>> command_line(["ganfast"], options, options)
        'ganfast --root PATH --seeds 0 1 --paired'
    """
    words = list(words)
    for name in names:
        value = "PATH" if name == "root" and options[name] else options[name]
        if value is not None and value is not False:
            words.append(f"--{name.replace('_', '-')}")
            if value is not True:
                words += map(str, value if isinstance(value, list | tuple) else [value])
    return shlex.join(words)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation of values (of one value: 0).

    Examples:
        >>> from ganfast.applications.records import mean_and_deviation
        >>> mean_and_deviation([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def as_text(table: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the names of a record's table, then its rows; a value and its deviation are one.

    Examples:
        >>> from ganfast.applications.records import as_text
        >>> as_text([{"method": "sgan", "accuracy": 0.98, "deviation": 0.002, "seeds": 5}])
        [['method', 'accuracy', 'seeds'], ['sgan', '0.9800 ± 0.0020', '5']]
    """
    rows = [_joined(row) for row in table]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [names, *([row.get(name, "") for name in names] for row in rows)]


def _joined(row: Mapping[str, Any]) -> dict[str, str]:
    """Write a row's values, each with its deviation if it has one."""
    deviations = {name: f"{name} deviation" for name in row} | {"accuracy": "deviation"}
    cells = {}
    for name, value in row.items():
        if name in deviations.values():
            continue
        deviation = row.get(deviations.get(name, ""))
        if row.get("seeds") == 1:
            deviation = None  # one seed has none
        cells[name] = _cell(value) + (f" ± {_cell(deviation)}" if deviation is not None else "")
    return cells


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.1f}"
