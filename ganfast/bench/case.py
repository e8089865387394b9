"""Benchmark cases, and the suites of `ganfast bench` that modules register."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ganfast import backend
from ganfast.bench.footprint import Footprint

__all__ = [
    "BACKENDS",
    "CALLS_PER_GRAPH",
    "PASSES",
    "SUITES",
    "Case",
    "Options",
    "Providers",
    "Rotation",
    "Suite",
]

ROUGHLY = 0.1
"""Relative difference that a provider of another precision may have."""

PASSES = ("forward", "forward+backward", "double backward")

BACKENDS = ("native", "triton")
"""Peers that are ganfast itself with one backend."""

CALLS_PER_GRAPH = 20
"""Least number of calls in a CUDA graph: its launch takes longer than a small kernel."""

Providers = dict[str, Callable[[], Any]]
"""Calls that compute the same, by name: "ganfast", its peers, and "clone" or "sum" as the limit of
the memory."""


class Case(NamedTuple):
    """One thing to measure.

    Attributes:
        shape: of its main tensor, as the command takes it: "128x64x32x32".
        variant: dtype, layout and the like, for people.
        passes: "forward", "forward+backward", "double backward" or "step".
        build: makes the inputs and the providers, and compares their values.
        names: of the providers that ``build`` returns.
        bytes_moved: least number of bytes to read and write; 0 if memory is not the limit.
        copy_bytes: bytes that "clone" reads and writes.
        images: images that a call trains on, for whole steps.
        footprints: measures memory and kernels of each provider, built anew; None if the case
            does not measure them.
    """

    shape: str
    variant: str
    passes: str
    build: Callable[[], Providers]
    names: tuple[str, ...]
    bytes_moved: int = 0
    copy_bytes: int = 0
    images: int = 0
    footprints: Callable[[], dict[str, Footprint]] | None = None


@dataclass(frozen=True)
class Options:
    """Options of a suite; an empty tuple stands for the suite's own choice.

    ``cold_bytes`` is a size that a case's inputs, taken in turn, exceed, so that none is in a
    cache; with 0 every call reads the same tensors. ``graphs`` says that calls will be captured in
    CUDA graphs; each then reads inputs of its own.
    """

    device: str = "cpu"
    passes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    layouts: tuple[str, ...] = ("NC*",)
    shapes: tuple[tuple[int, ...], ...] = ()
    against: tuple[str, ...] = ("eager",)
    cold_bytes: int = 0
    graphs: bool = False

    def inputs(self, bytes_moved: int) -> int:
        """Return how many inputs a case takes in turn, from the bytes that a call moves.

        Examples:
            >>> from ganfast.bench import Options
            >>> Options(cold_bytes=1000).inputs(300)
            4
        """
        least = CALLS_PER_GRAPH if self.graphs else 1
        return max(least, math.ceil(self.cold_bytes / bytes_moved))


class Suite(NamedTuple):
    """Cases of one kind, the peers that can be measured, and the options that have no use."""

    cases: Callable[[Options], Iterator[Case]]
    peers: tuple[str, ...]
    ignored: tuple[str, ...] = ()


SUITES: dict[str, Suite] = {}
"""The suites of ``ganfast bench`` by name; each module of cases registers its own."""


class Rotation:
    """Call each of several functions in turn.

    Attributes:
        period: number of functions.
    """

    def __init__(self, functions: Sequence[Callable[[], Any]]) -> None:
        self.period = len(functions)
        self._in_turn = itertools.cycle(functions)

    def __call__(self) -> Any:
        return next(self._in_turn)()


def serving(name: str) -> AbstractContextManager[Any]:
    """Return the context in which a provider is called: its backend, if it is named for one."""
    return backend.use(name) if name in BACKENDS else nullcontext()


def checked(
    providers: Providers,
    tolerance: float,
    *,
    seed: Callable[[], Any] = int,
    rough: Sequence[str] = (),
) -> Providers:
    """Compare every provider's results with ganfast's, by relative error of the norm.

    By the norm, because two right results differ in the mask if an activation's input is 0 within a
    rounding. ``seed`` is called before each. ``rough`` names providers of another precision, which
    may differ by ROUGHLY.

    Raises:
        AssertionError: a provider's results differ.
    """
    results = {}
    for name, call in providers.items():
        with serving(name):
            seed()
            result = call()
            results[name] = (result,) if isinstance(result, Tensor) else result
    for name, result in results.items():
        for value, our_value in zip(result, results["ganfast"], strict=True):
            theirs, ours = value.detach().double(), our_value.detach().double()
            error = (theirs - ours).norm() / theirs.norm()
            if not error <= (ROUGHLY if name in rough else tolerance):
                raise AssertionError(f"{name} and ganfast differ by {error:.1e} of the norm")
    return providers
