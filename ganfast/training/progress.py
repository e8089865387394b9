"""The progress of a run on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter
from types import TracebackType

__all__ = ["Progress"]

LINE_EVERY_S = 10.0


class Progress:
    """Show a bar if standard error is a terminal, else print a line every ten seconds.

    Args:
        step: the first step of the run.
        steps: the last one.
        batch_size: images a step.
        shown: False to show nothing.
    """

    def __init__(self, step: int, steps: int, batch_size: int, *, shown: bool = True) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            unit_scale=True,
            disable=None if shown else True,  # None: unless standard error is a terminal
        )
        self._prints = shown and self._bar.disable
        self._step = step
        self._steps = steps
        self._batch_size = batch_size
        self._steps_done = 0  # more than the step says, after a rollback
        self._losses = ""
        self._start = self._last_line = perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, step: int, measured: Mapping[str, float]) -> None:
        """Count one more step, with what was measured of it, if anything."""
        if measured:
            self._bar.set_postfix(measured, refresh=False)
            self._losses = ", d_loss {d_loss:.3f}, g_loss {g_loss:.3f}".format(**measured)
        self._bar.update((step - self._step) * self._batch_size)
        self._step = step
        self._steps_done += 1
        now = perf_counter()
        if self._prints and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._print_line(now - self._start)

    def _print_line(self, elapsed_s: float) -> None:
        steps_per_s = self._steps_done / elapsed_s
        left = self._bar.format_interval((self._steps - self._step) / steps_per_s)
        print(
            f"step {self._step} of {self._steps}: {steps_per_s * self._batch_size:.0f} images/s"
            f"{self._losses}, {left} left",
            file=sys.stderr,
            flush=True,
        )
