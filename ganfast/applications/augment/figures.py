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
    """Draw each method's accuracy: a point a seed, mean and deviation beside; a panel a record.

    Args:
        records: of ``ganfast augment``.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 4 * len(records), 4), layout="constrained")
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    for axes, record in zip(panels, records, strict=True):
        methods = [str(row["method"]) for row in record.table]
        for place, method in enumerate(methods):
            values = [of_seed["accuracies"][method] for of_seed in record.seeds]
            axes.scatter([place] * len(values), values, alpha=0.5, color=f"C{place}")
            row = record.table[place]
            axes.errorbar(
                place + 0.2, row["accuracy"], row["deviation"],
                color=f"C{place}", marker="_", markersize=12, capsize=4,
            )  # fmt: skip
        axes.set_xticks(range(len(methods)), [m.replace(" + ", "\n+ ").replace(", ", ",\n")
                                              for m in methods], fontsize=8)  # fmt: skip
        learned = ", pseudo-labels" if record.options.get("pseudo_updates") else ""
        held_out = " (validation)" if record.options.get("validation") else ""
        title = f"{record.options['data']}{held_out}, {record.options['labels']} labels{learned}"
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("accuracy (share of images)")
    figure.suptitle("classifiers trained on real and generated images, over seeds", fontsize=11)
    figure.savefig(path, dpi=DOTS_PER_INCH)
