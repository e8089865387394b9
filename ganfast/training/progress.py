"""The progress of a run, or of a phase of one, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from time import perf_counter
from types import TracebackType

__all__ = ["Progress", "Steps", "progress_bars", "silent"]

LINE_EVERY_S = 10.0

Steps = Callable[[str, int], Generator[int]]
"""Takes the title of a phase and its number of steps, and yields their numbers, from 0."""


def silent(title: str, steps: int) -> Generator[int]:
    """Yield the numbers of the steps of a phase, and show nothing."""
    yield from range(steps)


@contextmanager
def progress_bars(title: str = "") -> Iterator[Steps]:
    """Give what shows phase after phase: the steps that are done and the time that is left.

    No bar stays where an error ends a phase. Without a terminal, many short phases have a line
    every ten seconds as a long one has.
    """
    last_line = perf_counter()

    def shown(phase: str, steps: int) -> Generator[int]:
        nonlocal last_line
        with Progress(0, steps, title=f"{title}{phase}", last_line=last_line) as progress:
            for step in range(steps):
                yield step
                progress.update(step + 1, {})
                last_line = progress.last_line

    with ExitStack() as bars:
        yield lambda phase, steps: bars.enter_context(closing(shown(phase, steps)))


class Progress:
    """Show a bar if standard error is a terminal, else print a line every ten seconds.

    Args:
        step: the first step of the run.
        steps: the last one.
        batch_size: images a step.
        title: of a phase, whose bar does not stay and counts steps; "" for a run, which counts
            images.
        shown: False to show nothing.
        last_line: when something was printed last, in seconds of ``perf_counter``.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        batch_size: int = 1,
        *,
        title: str = "",
        shown: bool = True,
        last_line: float | None = None,
    ) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            desc=title or None,
            total=steps * batch_size,
            initial=step * batch_size,
            unit=" steps" if title else " images",
            unit_scale=not title,
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
        self._start = perf_counter()
        self.last_line = self._start if last_line is None else last_line

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
        if self._prints and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            self._print_line(now - self._start)

    def _print_line(self, elapsed_s: float) -> None:
        steps_per_s = self._steps_done / elapsed_s
        left = self._bar.format_interval((self._steps - self._step) / steps_per_s)
        where = f"step {self._step} of {self._steps}"
        speed = f"{steps_per_s * self._batch_size:.0f} images/s{self._losses}"
        text = f"{self._title}: {where}" if self._title else f"{where}: {speed}"
        print(f"{text}, {left} left", file=sys.stderr, flush=True)
