"""The pictures of a classification: confusion, and accuracy over the number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["plot_accuracy", "plot_confusion"]

DOTS_PER_INCH = 100
MOST_NAMED = 20  # classes whose names and counts can be read


def plot_confusion(counts: Tensor, classes: Sequence[str], title: str, path: Path) -> None:
    """Draw counts ``[K, K]``, rows true and columns predicted, as a PNG; shades are row shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if len(classes) <= MOST_NAMED:
        places = range(len(classes))
        turned = 90 if max(map(len, classes)) > 3 else 0
        axes.set_xticks(places, classes, rotation=turned)
        axes.set_yticks(places, classes)
        for row in places:
            for column in places:
                if counts[row, column]:
                    shade = "white" if shares[row, column] > 0.5 else "black"
                    text = str(int(counts[row, column]))
                    axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=7)
    figure.savefig(path)


def plot_accuracy(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the rows of a record's table: accuracy over labels, a line a method, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(6.4, 4.4), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == method), key=lambda r: r["labels"])
        axes.errorbar(
            [row["labels"] for row in own],
            [row["accuracy"] for row in own],
            [row["deviation"] for row in own],
            label=method,
            marker="o",
            capsize=4,
        )
    labels = sorted({row["labels"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(labels, [str(count) for count in labels])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title=title, xlabel="labelled images", ylabel="accuracy (share of images)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
