"""The pictures of an augmentation experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ganfast.applications.records import Record
from ganfast.training.batches import as_float
from ganfast.training.figures import save_grid

__all__ = ["plot_accuracies", "save_class_grid"]

COLUMNS = 10
DOTS_PER_INCH = 100


def save_class_grid(images: Tensor, labels: Tensor, path: Path) -> None:
    """Save a PNG with a row of images for each class.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: ``[N]``.
        path: of the file.
    """
    columns = min(COLUMNS, int(labels.bincount().min()))
    rows = [images[labels == label][:columns] for label in labels.unique()]
    save_grid(as_float(torch.cat(rows)), path, columns)


def plot_accuracies(records: Sequence[Record], path: Path) -> None:
    """Draw each method's accuracy, a point a seed and a bar for the mean, a panel a record.

    Args:
        records: of ``ganfast augment``.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 3 * len(records), 3.6), layout="constrained")
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    for axes, record in zip(panels, records, strict=True):
        methods = [str(row["method"]) for row in record.table]
        for place, method in enumerate(methods):
            values = [of_seed["accuracies"][method] for of_seed in record.seeds]
            axes.scatter([place] * len(values), values, alpha=0.5, color=f"C{place}")
            axes.hlines(record.table[place]["accuracy"], place - 0.3, place + 0.3, f"C{place}")
        axes.set_xticks(range(len(methods)), [m.replace(" + ", "\n+ ").replace(", ", ",\n")
                                              for m in methods], fontsize=8)  # fmt: skip
        axes.set_title(f"{record.options['data']}, {record.options['labels']} labels", fontsize=10)
        axes.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("test accuracy")
    figure.savefig(path, dpi=DOTS_PER_INCH)
