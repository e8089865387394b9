"""Device, output and signals of a command that trains, in one or several processes."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType

import torch

from ganfast.cli.errors import CommandError
from ganfast.training import Trainer, TrainingWarning
from ganfast.training.processes import launch

__all__ = ["only_first_prints", "own_device", "stop_on_interrupt", "warnings_in_one_line"]


@contextmanager
def only_first_prints() -> Iterator[None]:
    """Silence all ranks but 0; errors leave the block and are reported outside."""
    if launch().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def own_device(name: str | None) -> torch.device:
    """Return the device that ``--device`` means in this process, after a first operation on it."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launch().world_size > 1 and name.startswith("cuda"):
        name = _own_gpu(name)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device {name} is not available: {reason}") from error
    return device


def _own_gpu(name: str) -> str:
    if name != "cuda":
        raise CommandError(
            f"--device {name} is one GPU, but there are {launch().world_size} processes; with "
            "--device cuda each takes its own"
        )
    number, gpus = launch().local_rank, torch.cuda.device_count()
    if number >= gpus:
        raise CommandError(
            f"process {number} finds no GPU of its own: this machine has {gpus}; start fewer "
            "processes, or use --device cpu"
        )
    return f"cuda:{number}"


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print the warnings of training in one line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", TrainingWarning)
        warnings.showwarning = lambda message, *_: print(
            f"ganfast: warning: {message}", file=sys.stderr
        )
        yield


@contextmanager
def stop_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """End training after its step on the first Ctrl-C or SIGTERM, and at once on the second.

    torchrun repeats a signal to processes that got it already, and kills them after a while.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        if trainer.processes.count == 1:
            signal.signal(signum, previous[signal.Signals(signum)] or signal.SIG_DFL)
        trainer.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
