"""One thing to measure: providers that do the same work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Case", "check_results"]


class Case(NamedTuple):
    """Calls that compute the same, and what they are held to.

    Attributes:
        name: what is computed, its shape, dtype and layout, for people.
        passes: "forward", "forward+backward" or "double backward".
        providers: zero-argument calls by name.
    """

    name: str
    passes: str
    providers: dict[str, Callable[[], Any]]


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
