"""Compare every op with torch in float64, on this machine: the work behind ``ganfast verify``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from ganfast import backend
from ganfast.verify.exactness import Verdict

__all__ = ["CHECKS", "DTYPES", "Check", "Row", "verify"]

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


class Check(NamedTuple):
    """One call compared with torch's.

    Attributes:
        layout: name of the tensors' layout.
        name: mode and inputs.
        verdicts: runs the call and compares each result.
    """

    layout: str
    name: str
    verdicts: Callable[[], Iterable[Verdict]]


CHECKS: dict[str, Callable[[torch.dtype, str], Iterator[Check]]] = {}
"""The checks of every op by its name, for a dtype and a device, one layout after another; an op's
module adds its own."""


class Row(NamedTuple):
    """The checks of one op, backend, dtype and layout.

    Attributes:
        worst: the verdict that comes closest to its bound, or goes furthest beyond.
        failures: one line for each result that breaks the rule, and each call that raised.
    """

    op: str
    backend: str
    dtype: str
    layout: str
    results: int
    worst: Verdict
    failures: list[str]

    @classmethod
    def of(
        cls,
        op: str,
        backend: str,
        dtype: str,
        layout: str,
        verdicts: Sequence[Verdict],
        failures: list[str],
    ) -> Row:
        """Return the row of some verdicts and of what failed among them or before."""
        nothing = Verdict("", 0.0, 0.0, 0.0, 0.0, True)
        worst = max(verdicts, key=lambda verdict: verdict.closeness, default=nothing)
        return cls(op, backend, dtype, layout, len(verdicts), worst, failures)


def verify(
    *,
    device: str = "cpu",
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] = tuple(DTYPES),
) -> Iterator[Row]:
    """Run every registered check and yield a row for each op, backend, dtype and layout.

    Args:
        device: the device to run on.
        backends: names for ``ganfast.backend.use``; None for all that the device has, except
            Triton's interpreter, which takes minutes.
        dtypes: names out of ``DTYPES``.

    Raises:
        RuntimeError: a backend has no kernels here.
        ValueError: an unknown backend.

    Examples:
        >>> rows = list(verify(backends=["eager"], dtypes=["float32"]))
        >>> any(row.failures for row in rows)
        False
    """
    names = _default_backends(device) if backends is None else backends
    for name in names:
        with backend.use(name):  # raises with the reason if it has no kernels at all
            pass
        if name not in backend.available(device):
            raise RuntimeError(f"backend {name!r} has no kernels on {device} here")
    for op, checks in CHECKS.items():
        for name in names:
            for dtype in dtypes:
                with backend.use(name):
                    yield from _rows(op, name, dtype, checks(DTYPES[dtype], device))


def _default_backends(device: str) -> list[str]:
    return [
        n for n in backend.available(device) if (n, torch.device(device).type) != ("triton", "cpu")
    ]


def _rows(op: str, name: str, dtype: str, checks: Iterator[Check]) -> Iterator[Row]:
    for layout, group in itertools.groupby(checks, key=lambda check: check.layout):
        verdicts: list[Verdict] = []
        failures: list[str] = []
        for check in group:
            try:
                results = list(check.verdicts())
            except Exception as error:
                failures.append(f"{check.name}: {type(error).__name__}: {error}")
                continue
            verdicts += results
            failures += [f"{check.name}: {v.describe()}" for v in results if not v.passed]
        yield Row.of(op, name, dtype, layout, verdicts, failures)
