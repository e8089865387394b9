"""The result of one benchmark case."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ganfast.bench.floor import FLOORS

__all__ = ["Result", "geometric_mean", "read"]

LIMITS = ("clone", "sum", *FLOORS)
"""Providers that are no peers but limits: of memory, and of a step's convolutions."""


@dataclass(frozen=True)
class Result:
    """One case as ``ganfast bench --json`` writes it, a line each.

    Attributes:
        ms: milliseconds of one call of each provider: median, lower and upper quartile.
        bytes: least number of bytes to read and write; 0 if memory is not the limit.
        copy_bytes: that "clone" moves.
        images: that a call trains on.
        cold: whether calls took inputs in turn that exceed any cache.
        graphs: whether replays of CUDA graphs were timed.
        machine: see ``ganfast.bench.fingerprint``.
        peak_bytes: peak of the allocated memory of each provider; empty if not measured, as in
            files of earlier versions.
        kept_bytes: the part that is still allocated after a call.
        kernels: number of kernels of a call on a GPU; empty on the CPU.
        peak_parts: the peak of each provider by the part of the step that allocated it; empty on a
            GPU.
    """

    suite: str
    shape: str
    variant: str
    passes: str
    ms: dict[str, tuple[float, float, float]]
    bytes: int
    copy_bytes: int
    images: int
    cold: bool
    graphs: bool
    machine: dict[str, Any]
    peak_bytes: dict[str, int] = field(default_factory=dict)
    kept_bytes: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    peak_parts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def peers(self) -> list[str]:
        """Names of the providers that compute the same as ganfast."""
        return [name for name in self.ms if name not in ("ganfast", *LIMITS)]

    def ratio(self, name: str) -> float:
        """Return the speedup of ganfast over a provider."""
        return self.ms[name][0] / self.ms["ganfast"][0]

    def gigabytes_per_second(self, name: str) -> float:
        """Return the bytes that must be moved over a provider's time; for "clone", its own."""
        count = self.copy_bytes if name == "clone" else self.bytes
        return count / self.ms[name][0] / 1e6

    @property
    def share_of_copy(self) -> float:
        """Bandwidth of ganfast over that of a copy in the same run; NaN if there is no copy."""
        if not self.copy_bytes or not self.bytes or "clone" not in self.ms:
            return math.nan
        return self.gigabytes_per_second("ganfast") / self.gigabytes_per_second("clone")

    @property
    def over_floor(self) -> float:
        """Our time over that of a step's convolutions in the faster layout; NaN if unknown."""
        floors = [self.ms[name][0] for name in FLOORS if name in self.ms]
        return self.ms["ganfast"][0] / min(floors) if floors else math.nan

    def share_of_peak(self, name: str) -> float:
        """Return the peak memory of ganfast over that of a provider; NaN if one is unknown."""
        if not {"ganfast", name} <= self.peak_bytes.keys():
            return math.nan
        return self.peak_bytes["ganfast"] / self.peak_bytes[name]

    def to_json(self) -> str:
        """Return one line."""
        return json.dumps(asdict(self))


def read(path: Path) -> list[Result]:
    """Read a file that ``ganfast bench --json`` wrote.

    Raises:
        ValueError: a line is none of its; the message names file and line.
    """
    results = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            results.append(Result(**json.loads(line)))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path.name}, line {number}: no result of ganfast bench: {error}"
            ) from error
    return results


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean that suits ratios.

    Examples:
        >>> from ganfast.bench.result import geometric_mean
        >>> geometric_mean([2.0, 8.0])
        4.0
    """
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
