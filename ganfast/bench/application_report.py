"""Render README's tables of the applications from their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ganfast.applications.records import Record

__all__ = ["render_applications"]

BEGIN = "<!-- applications: python -m ganfast.bench.report -->\n"
END = "<!-- end of applications -->\n"


def render_applications(text: str, folder: Path) -> str:
    """Return a README's text with the tables of a folder of records between its two marks.

    Raises:
        ValueError: the marks are missing, or a file is no record.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no lines {BEGIN.strip()!r} and {END.strip()!r}")
    texts = [_section(path, Record.load(path)) for path in sorted(folder.glob("*.json"))]
    return head + begin + "".join(texts) + end + tail


def _section(path: Path, record: Record) -> str:
    machine = record.machine
    where = machine["gpu"] or f"{machine['threads']} threads of {machine['cpu']}"
    names = list(dict.fromkeys(name for row in record.table for name in row))
    rows = [names, ["---"] * len(names)]
    rows += [[_cell(row.get(name)) for name in names] for row in record.table]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"\n`{record.command}`\n\n{table}\n\n"
        f"{record.seconds / 60:.0f} minutes on {where}, torch {machine['torch']}, "
        f"{machine['date']}; [{path.name}](benchmarks/results/applications/{path.name}).\n"
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
