"""The tables, pictures, TensorBoard events and warnings of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ganfast.training.figures import grid, plot_losses, save_grid
from ganfast.training.health import Health
from ganfast.training.metrics import QUALITY_COLUMNS, Table
from ganfast.training.step import StepResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["WRITTEN", "Journal"]

WRITTEN = ("metrics.csv", "quality.csv", "samples*.png", "losses.png", "tensorboard")
"""Patterns of the names of all files that a journal writes."""


class Journal:
    """Write the measurements of a run.

    Args:
        out: folder to write to.
        batch_size: images a step.
        health: warns of what it sees in them.
        tensorboard: whether to write events for TensorBoard too, below ``tensorboard``.
    """

    def __init__(self, out: Path, batch_size: int, health: Health, *, tensorboard: bool) -> None:
        self.metrics = Table(out / "metrics.csv")
        self.quality = Table(out / "quality.csv", QUALITY_COLUMNS)
        self._out = out
        self._batch_size = batch_size
        self._health = health
        self._tensorboard = tensorboard
        self._board: SummaryWriter | None = None
        self._waited_s = 0.0

    def begin(self, step: int) -> None:
        """Continue from a step; rows of later steps are dropped."""
        self.metrics.truncate(step)
        if self.quality.path.exists():
            self.quality.truncate(step)
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.close()
            self._board = SummaryWriter(str(self._out / "tensorboard"), purge_step=step + 1)
        self._begin_interval(step)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the block as spent on the next batch."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    def write_metrics(self, step: int, result: StepResult) -> dict[str, float]:
        """Write one row: the only host-device sync of the loop."""
        measured = {name: value.item() for name, value in result._asdict().items()}
        elapsed_s = time.perf_counter() - self._interval_start
        steps = step - self._interval_start_step
        speed = {
            "images_per_second": round(steps * self._batch_size / elapsed_s, 1),
            "data_ms": round(1e3 * self._waited_s / steps, 4),
            "compute_ms": round(1e3 * (elapsed_s - self._waited_s) / steps, 4),
        }
        self.metrics.append({"step": step, **measured, **speed})
        self._write_scalars(step, {**measured, **speed})
        self._health.watch_loss(step, measured["d_loss"])
        self._begin_interval(step)
        return measured

    def write_samples(self, step: int, images: Tensor, name: str) -> None:
        """Draw generated images ``[N, C, H, W]`` in [-1, 1]."""
        save_grid(images, self._out / name)
        if self._board is not None:
            self._board.add_image("samples", grid(images), step)
        self._health.watch_images(step, images)

    def write_quality(self, step: int, distance: float) -> bool:
        """Write one row, and return whether it is better than all earlier ones."""
        if not self.quality.path.exists():
            self.quality.truncate(step)
        earlier = self.quality.columns()["frechet_distance"]
        self.quality.append({"step": step, "frechet_distance": distance})
        self._write_scalars(step, {"frechet_distance": distance})
        return distance < min(earlier, default=float("inf"))

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def plot(self) -> None:
        """Draw the tables."""
        quality = self.quality.columns() if self.quality.path.exists() else None
        plot_losses(self.metrics.columns(), self._out / "losses.png", quality)

    def _begin_interval(self, step: int) -> None:
        self._interval_start = time.perf_counter()
        self._interval_start_step = step
        self._waited_s = 0.0

    def _write_scalars(self, step: int, values: dict[str, Any]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
