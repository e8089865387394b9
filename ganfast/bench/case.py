"""What can be measured: cases, and the suites of `ganfast bench` that modules register."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["PASSES", "SUITES", "Case", "Options", "check_results"]

PASSES = ("forward", "forward+backward", "double backward")


class Case(NamedTuple):
    """Calls that compute the same, and what they are held to.

    Attributes:
        name: what is computed, its shape, dtype and layout, for people.
        passes: "forward", "forward+backward" or "double backward".
        providers: zero-argument calls by name; "ganfast" is ours, "clone" and "sum" are what memory
            allows.
        bytes_moved: bytes that must be read and written at the least; 0 where that says nothing.
        copy_bytes: bytes that "clone" reads and writes.
        images: images that a call trains on, for whole steps.
    """

    name: str
    passes: str
    providers: dict[str, Callable[[], Any]]
    bytes_moved: int = 0
    copy_bytes: int = 0
    images: int = 0


@dataclass(frozen=True)
class Options:
    """What a suite is asked for; an empty tuple stands for the suite's own choice."""

    device: str = "cpu"
    passes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    layouts: tuple[str, ...] = ("NC*",)
    shapes: tuple[tuple[int, ...], ...] = ()
    against: tuple[str, ...] = ("eager",)


SUITES: dict[str, Callable[[Options], Iterator[Case]]] = {}
"""The suites of ``ganfast bench`` by name; each module of cases registers its own."""


def check_results(results: dict[str, Any], tolerance: float) -> None:
    """Compare every provider's results with ganfast's, by relative error of the norm.

    By norms, because where an activation meets 0 within a rounding two right answers differ in the
    mask.

    Raises:
        AssertionError: a provider computes something else.
    """
    for name, result in results.items():
        ours = results["ganfast"]
        if isinstance(result, Tensor):
            result, ours = (result,), (ours,)
        for theirs, value in zip(result, ours, strict=True):
            theirs, value = theirs.detach().double(), value.detach().double()
            error = (theirs - value).norm() / theirs.norm()
            if not error <= tolerance:
                raise AssertionError(f"{name} and ganfast differ by {error:.1e} of the norm")
