"""Warnings of mode collapse and of a discriminator that has won."""

from __future__ import annotations

import warnings

from torch import Tensor

from ganfast.training.errors import TrainingWarning

__all__ = ["Health", "diversity"]

WON = 0.02
"""A discriminator's loss below which the generator learns hardly anything."""
WON_ROWS = 5
ALIKE = 0.1
FIRST_STEP = 200
"""First step to watch images at: those of an untrained generator are all alike."""


def diversity(images: Tensor) -> float:
    """Return the mean over pixels of the deviation between images ``[N, C, H, W]``."""
    return images.float().std(0).mean().item()


class Health:
    """Watch a run and warn once of each failure.

    Args:
        real: images ``[N, C, H, W]`` in [-1, 1], to compare generated ones with.
        loss: kind of the loss; "wasserstein" is not bounded, so its value is not watched.
    """

    def __init__(self, real: Tensor, loss: str) -> None:
        self._diversity = diversity(real)
        self._bounded = loss != "wasserstein"
        self._rows_won = 0
        self._alike_before = False
        self._warned: set[str] = set()

    def watch_loss(self, step: int, d_loss: float) -> None:
        """Watch the loss of one row of the metrics."""
        self._rows_won = self._rows_won + 1 if self._bounded and d_loss < WON else 0
        if self._rows_won == WON_ROWS:
            self._warn(
                "won",
                f"at step {step} the discriminator's loss has been below {WON} for {WON_ROWS} rows "
                "of metrics: it tells real from generated images with certainty, and the generator "
                "learns hardly anything; try a lower learning rate, --r1 or another --loss",
            )

    def watch_images(self, step: int, images: Tensor) -> None:
        """Watch generated images ``[N, C, H, W]``; alike twice in a row is a mode collapse."""
        if step < FIRST_STEP:
            return
        share = diversity(images) / max(self._diversity, 1e-12)
        if share < ALIKE and self._alike_before:
            self._warn(
                "alike",
                f"at step {step} generated images are nearly all alike: they vary {share:.2f} "
                "times as much as real ones; the generator has collapsed: try a lower learning "
                "rate, --penalty or --r1",
            )
        self._alike_before = share < ALIKE

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, TrainingWarning, stacklevel=4)
