"""Render the tables of the applications from their records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ganfast.applications.records import Record, as_text
from ganfast.training.errors import counted

__all__ = ["application_headline", "application_tables"]

MEASURED = {
    "classify": "Accuracy after the last update on the test set, or with `--validation` on images "
    "held out of the training set, ± deviation over the seeds",
    "augment": "Accuracy after the last update, ± deviation over the seeds; its difference from "
    "that of the method it is compared with, with the 95 % interval",
    "anomaly": "Area under the ROC curve on the test set, ± deviation over the seeds",
    "edit": "Mean squared error of pixels in [-1, 1], in the hole or of the whole image, ± "
    "deviation over the images",
}
MEAN = "mean"


class Figure(NamedTuple):
    """One figure of a record: its file, the method or task of its row, its column, and a name."""

    record: str
    row: str
    column: str
    name: str


HEADLINE = {
    "MNIST with 100 labels, share named rightly": (
        Figure("classify-mnist-100", "sgan", "accuracy", "`sgan`"),
        Figure("classify-mnist-methods", "supervised", "accuracy", "the labels alone"),
    ),
    "the same by another network": (
        Figure("augment-mnist-100-pseudo", "real + generated", "accuracy", "generated images too"),
        Figure("augment-mnist-100-pseudo", "real", "accuracy", "labelled images"),
    ),
    "a hole in a digit, squared error": (
        Figure("edit-mnist", "inpaint center", "mean of searches", "`inpaint`"),
        Figure("edit-mnist", "inpaint center", "training mean", "the mean image"),
    ),
    "a digit enlarged four times, squared error": (
        Figure("edit-mnist", "upscale 4", "corrected", "`upscale`"),
        Figure("edit-mnist", "upscale 4", "bicubic", "bicubic filter"),
    ),
}
"""The rows of README's table: what a GAN does, and what does it without."""


def application_headline(folder: Path) -> str:
    """Return README's table of a folder of records, in Markdown: of the records that are there."""
    lines = ["", "| | with a GAN | without |", "| --- | --- | --- |"]
    for task, figures in HEADLINE.items():
        if all((folder / f"{figure.record}.json").exists() for figure in figures):
            cells = (f"{_value(folder, figure):.3f} {figure.name}" for figure in figures)
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _value(folder: Path, figure: Figure) -> float:
    table = Record.load(folder / f"{figure.record}.json").table
    (row,) = (row for row in table if row.get("method", row.get("task")) == figure.row)
    value: float = row[figure.column]
    return value


def application_tables(folder: Path) -> str:
    """Return the tables of a folder of records, in Markdown.

    Raises:
        ValueError: a file is no record.
    """
    records = {path: Record.load(path) for path in sorted(folder.glob("*.json"), key=_natural)}
    texts = []
    for application, measured in MEASURED.items():
        sections = [_section(p, r) for p, r in records.items() if r.application == application]
        if sections:
            texts += [f"\n**`ganfast {application}`**. {measured}.\n", *sections]
    return "".join(texts)


def _natural(path: Path) -> list[tuple[str, int]]:
    """Return what sorts names with numbers in them by these."""
    parts = re.findall(r"(\D+)(\d*)", path.stem)
    return [(text, int(number or 0)) for text, number in parts]


def _section(path: Path, record: Record) -> str:
    machine = record.machine
    where = machine["gpu"] or f"{counted(machine['threads'], 'thread')} of {machine['cpu']}"
    table = list(record.table)
    if len(table) > 1 and MEAN in table[-1].values():
        table = table[-1:]  # the rest is in the file
    names, *rows = as_text(table)
    rows = [names, ["---"] * len(names), *rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"\n`{record.command}`: {counted(round(record.seconds / 60), 'minute')} on {where}, "
        f"{machine['date']} ([record](../benchmarks/results/applications/{path.name}))\n\n{lines}\n"
    )
