"""Plots of benchmark results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ganfast.bench.result import Result

__all__ = ["bars", "roofline"]

DOTS_PER_INCH = 120


def bars(results: Sequence[Result], path: str, *, title: str = "", description: str = "") -> None:
    """Draw the speedup over each peer in every case as a bar, into a PNG file.

    Args:
        results: of one or more suites.
        path: of the file.
        title: above the picture.
        description: kept inside the file.
    """
    from matplotlib.figure import Figure

    peers = list(dict.fromkeys(name for result in results for name in result.peers))
    height = 0.8 / max(1, len(peers))
    inches = 1.2 + 0.28 * len(results) * max(1, len(peers))
    figure = Figure(figsize=(9, inches), layout="constrained")
    axes = figure.subplots()
    for index, peer in enumerate(peers):
        rows = [row for row, result in enumerate(results) if peer in result.ms]
        drawn = axes.barh(
            [row + index * height for row in rows],
            [results[row].ratio(peer) for row in rows],
            height,
            label=peer,
        )
        axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(
        [row + 0.4 - height / 2 for row in range(len(results))],
        [f"{result.shape} {result.variant}, {result.passes}" for result in results],
        fontsize=8,
    )
    axes.margins(x=0.08, y=0.01)  # room for the numbers at the ends of the bars
    axes.invert_yaxis()
    axes.set_xlabel("speedup of ganfast")
    axes.set_title(title)
    if peers:
        axes.legend()
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Description": description})


def roofline(
    results: Sequence[Result], path: str, *, title: str = "", description: str = ""
) -> None:
    """Draw bandwidth over the size of a case's tensor, with that of a copy as the roof.

    The bandwidth counts the bytes that must be moved, whatever a provider does move, so that a
    point's height is its speed. Cases without a count of bytes are left out.

    Args:
        results: of one suite and machine.
        path: of the PNG file.
        title: above the picture.
        description: kept inside the file.

    Raises:
        ValueError: no case has both a count of bytes and a copy beside it.
    """
    from matplotlib.figure import Figure

    counted = [r for r in results if r.bytes and r.copy_bytes and "clone" in r.ms]
    if not counted:
        raise ValueError("no case here counts its bytes beside a copy's: there is no roofline")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    roof: dict[float, float] = {}
    for r in counted:
        size = _megabytes(r)
        roof[size] = max(roof.get(size, 0.0), r.gigabytes_per_second("clone"))
    axes.plot(*zip(*sorted(roof.items()), strict=True), color="black", linewidth=1, label="copy")
    markers = dict(zip(dict.fromkeys(r.passes for r in counted), "osD", strict=False))
    colours: dict[str, Any] = {}
    for passes, marker in markers.items():
        chosen = [r for r in counted if r.passes == passes]
        for name in ("ganfast", *dict.fromkeys(n for r in chosen for n in r.peers)):
            points = [(_megabytes(r), r.gigabytes_per_second(name)) for r in chosen if name in r.ms]
            drawn = axes.scatter(
                *zip(*points, strict=True), marker=marker, label=f"{name}, {passes}",
                color=colours.get(name), alpha=0.8,
            )  # fmt: skip
            colours[name] = drawn.get_facecolor()
    axes.set(xscale="log", yscale="log", xlabel="MB of the tensor", ylabel="GB/s", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Description": description})


def _megabytes(result: Result) -> float:
    """Return the size of the tensor, which a copy reads once and writes once."""
    return result.copy_bytes / 2e6
