"""The pictures of anomaly detection."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ganfast.applications.anomaly.protocol import MEAN, WORST
from ganfast.applications.records import Record

__all__ = ["draw_errors", "plot_auroc"]

GAP = 2  # pixels between images
BREAK = 10  # between the two sides
COLOURS = 128


def plot_auroc(record: Record, path: Path) -> None:
    """Plot the AUROC of every class, mean and deviation over the seeds, a mark a method.

    Args:
        record: of ``ganfast anomaly``.
        path: of the PNG file.
    """
    # The figure draws itself with Agg: no display is needed and pyplot's state is not touched.
    from matplotlib.figure import Figure

    rows, methods = record.table, record.options["methods"]
    images = "validation" if record.options["validation"] else "test set"
    seeds = max(row["seeds"] for row in rows)
    figure = Figure(figsize=(8, 4), dpi=90, layout="constrained")
    axes = figure.subplots()
    for index, (method, marker) in enumerate(zip(methods, "osvD^", strict=False)):
        places = [row + (index - (len(methods) - 1) / 2) * 0.15 for row in range(len(rows))]
        axes.errorbar(
            places,
            [row[method] for row in rows],
            [row[f"{method} deviation"] for row in rows],
            fmt=marker, markersize=5, capsize=3, label=method,
        )  # fmt: skip
    if rows[-1]["normal"] == MEAN:
        axes.axvline(len(rows) - 1.5, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [str(row["normal"]) for row in rows])
    axes.set(
        xlabel="normal class",
        ylabel=f"area under the ROC curve, {images}",
        title="One class is normal" + (f": mean ± deviation of {seeds} seeds" if seeds > 1 else ""),
    )
    axes.grid(alpha=0.3)
    figure.legend(ncols=len(methods), loc="outside lower center")
    figure.savefig(path)


def draw_errors(
    images: Tensor, cases: Mapping[str, Sequence[Sequence[int]]], method: str, path: Path
) -> None:
    """Draw, a row a class, normal images with the highest scores and anomalies with the lowest.

    Args:
        images: uint8 ``[N, C, H, W]``.
        cases: for each normal class the indices of those normal ones and of those anomalies, at
            most six each.
        method: name of the scores.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    rows = [_row(*(images[list(side)] for side in case)) for case in cases.values()]
    picture = torch.cat(rows, 1).permute(1, 2, 0).expand(-1, -1, 3).contiguous()
    height, width = picture.shape[:2]
    figure = Figure(figsize=(6, 0.7 + 5.5 * height / width), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture.numpy(), interpolation="nearest")
    axes.set_yticks([(row + 0.5) * height / len(rows) for row in range(len(rows))], list(cases))
    axes.set_xticks(
        [width / 4, 3 * width / 4],
        ["normal, scored most anomalous", "anomalous, scored most normal"],
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(ylabel="normal class", title=f'the worst of "{method}"')
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as full:  # a third of the bytes, for files that are kept
        full.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _row(normal: Tensor, anomalous: Tensor) -> Tensor:
    """Return one row of images, uint8 ``[C, H, W]``, white between them."""
    sides = []
    for images in (normal, anomalous):
        cells = functional.pad(images, (GAP, GAP, GAP, GAP), value=255)
        missing = WORST - len(cells)
        cells = torch.cat([cells, cells.new_full((missing, *cells.shape[1:]), 255)])
        sides.append(torch.cat(list(cells), 2))
    left, right = sides
    return torch.cat([left, left.new_full((*left.shape[:2], BREAK), 255), right], 2)
