"""Tables of measurements that a training run writes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "QUALITY_COLUMNS", "Table"]

COLUMNS = (
    "step", "d_loss", "g_loss", "real_score", "fake_score",
    "images_per_second", "data_ms", "compute_ms",
)  # fmt: skip
QUALITY_COLUMNS = ("step", "frechet_distance")


class Table:
    """Append rows to a CSV file and read them back; every row is on disk when written.

    Args:
        path: of the file.
        columns: their names; one is "step".
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path = path
        self.names = columns

    def truncate(self, last_step: int) -> None:
        """Keep the complete rows up to a step, so that a resumed run repeats none."""
        kept = [row for row in self._rows() if int(row["step"]) <= last_step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.names)
        writer.writeheader()
        writer.writerows(kept)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text.getvalue(), newline="")
        partial.replace(self.path)

    def append(self, row: dict[str, float]) -> None:
        """Write one row, a value for every column."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.names).writerow(row)

    def columns(self) -> dict[str, list[float]]:
        """Return every column's values in the order of the rows."""
        rows = self._rows()
        return {name: [float(row[name]) for row in rows] for name in self.names}

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        # A killed run may have left half a row, and a damaged disk anything.
        with self.path.open(newline="", errors="replace") as file:
            lines = (line.replace("\0", "") for line in file)
            return [row for row in csv.DictReader(lines) if self._is_whole(row)]

    def _is_whole(self, row: dict[str, Any]) -> bool:
        try:
            return all(math.isfinite(float(row[name])) for name in self.names)
        except (KeyError, TypeError, ValueError):
            return False
