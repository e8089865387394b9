"""Records of what an application measured, from which tables are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ganfast.machine import fingerprint
from ganfast.training.output import write_whole

__all__ = ["Record", "mean_and_deviation"]


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


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation of values (of one value: 0).

    Examples:
        >>> from ganfast.applications.records import mean_and_deviation
        >>> mean_and_deviation([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    return mean(values), stdev(values) if len(values) > 1 else 0.0
