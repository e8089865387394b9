"""The progress of a run, or of a phase of one, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from time import perf_counter
from types import TracebackType

__all__ = ["Progress", "Steps", "progress_bar", "silent"]

LINE_EVERY_S = 10.0

Steps = Callable[[str, int], Generator[int]]
"""Takes the title of a phase and its number of steps, and yields their numbers, from 0."""


def silent(title: str, steps: int) -> Generator[int]:
    """Yield the numbers of the steps of a phase, and show nothing."""
    yield from range(steps)


def progress_bar(title: str, steps: int) -> Generator[int]:
    """Yield the numbers of the steps of a phase, and show how many are done and the time left."""
    with Progress(0, steps, title=title) as progress:
        for step in range(steps):
            yield step
            progress.update(step + 1, {})


class Progress:
    """Show a bar if standard error is a terminal, else print a line every ten seconds.

    Args:
        step: the first step of the run.
        steps: the last one.
        batch_size: images a step.
        title: of a phase, whose bar does not stay and counts steps; "" for a run, which counts
            images.
        shown: False to show nothing.
    """

    def __init__(
        self, step: int, steps: int, batch_size: int = 1, *, title: str = "", shown: bool = True
    ) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            desc=title or None,
            total=steps * batch_size,
            initial=step * batch_size,
            unit=" steps" if title else " images",
            unit_scale=True,
            leave=not title,
            disable=None if shown else True,  # None: unless standard error is a terminal
        )
        self._prints = shown and self._bar.disable
        self._title = title
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
        where = f"step {self._step} of {self._steps}"
        speed = f"{steps_per_s * self._batch_size:.0f} images/s{self._losses}"
        text = f"{self._title}: {where}" if self._title else f"{where}: {speed}"
        print(f"{text}, {left} left", file=sys.stderr, flush=True)
