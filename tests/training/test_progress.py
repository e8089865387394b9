"""What is shown of the phases of a work, with and without a terminal."""

from __future__ import annotations

import io
import itertools

import pytest

pytest.importorskip("tqdm")

from ganfast.training import progress
from ganfast.training.progress import progress_bars, silent


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


def test_short_phases_have_a_line_every_ten_seconds(capsys, monkeypatch):
    clock = itertools.count(step=2.0)  # seconds between two looks
    monkeypatch.setattr(progress, "perf_counter", lambda: next(clock))
    with progress_bars("seed 3: ") as shown:
        for phase in ("one", "two", "three"):
            assert list(shown(phase, 3)) == [0, 1, 2]
    # Looks: at the start, and in each phase once before its three steps.
    assert capsys.readouterr().err.splitlines() == [
        "seed 3: two: step 1 of 3, 00:04 left",
        "seed 3: three: step 2 of 3, 00:02 left",
    ]


def test_a_bar_goes_when_an_error_ends_its_phase(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    def stop_in_the_second_phase() -> None:
        with progress_bars("seed 3: ") as shown:
            list(shown("one", 2))
            steps = shown("two", 5)
            for _ in steps:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        stop_in_the_second_phase()
    bars, empty = terminal.getvalue(), "\r" + " " * 40
    assert raised.tb  # whose frames still have the phase that was not finished
    assert "seed 3: one:   0%|          | 0/2" in bars
    assert "seed 3: two:   0%|          | 0/5" in bars
    assert bars.endswith("\r")
    assert bars.count(empty) == 2


def test_silent_shows_nothing(capsys):
    assert list(silent("one", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
