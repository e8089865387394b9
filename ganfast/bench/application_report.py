"""Render the tables of the applications from their records."""

from __future__ import annotations

import re
from pathlib import Path

from ganfast.applications.records import Record, as_text
from ganfast.training.errors import counted

__all__ = ["application_tables"]

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
