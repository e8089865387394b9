"""What a training step takes beside time: memory at its peak, and kernels on a GPU."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["Footprint", "footprint"]

CPU_STEPS = 2
"""The second has what the first leaves: gradients, and the states of the optimizers."""
CUDA_STEPS = 6
"""Of GANStep three warm up, and the fourth is captured into a graph."""

Event = Mapping[str, Any]


class Footprint(NamedTuple):
    """What one provider takes, as in a process of its own; the images it trains on are not counted.

    Attributes:
        peak_bytes: the most that torch's allocator had given out at one time, from the making of
            the networks on: parameters, gradients, optimizer states, activations.
        kept_bytes: what of it stays between two steps.
        kernels: that one step runs on the GPU; None on the CPU.
    """

    peak_bytes: int
    kept_bytes: int
    kernels: int | None


def footprint(build: Callable[[], Callable[[], Any]], device: str = "cpu") -> Footprint:
    """Make a provider, take its first steps and say what it takes.

    On a GPU torch's allocator keeps count. On the CPU torch.profiler records each allocation and
    release, and their sum is followed to its peak. Resident memory would say less: it holds what
    the C library keeps, and in one process what every provider before has left behind. What
    kernels take outside of torch's allocator (oneDNN, a few doubles a channel in ganfast's) is
    seen by neither.

    Args:
        build: makes networks and optimizers and returns their step.
        device: where they are.

    Example::

        >>> kept = torch.zeros(250)
        >>> footprint(lambda: torch.zeros(1000).clone).peak_bytes
        8000
    """
    if torch.device(device).type == "cuda":
        return _on_cuda(build)
    gc.collect()  # what is released later must be the provider's own
    with _recorded([ProfilerActivity.CPU], profile_memory=True) as events:
        step = build()
        for _ in range(CPU_STEPS):
            step()
    del step
    return Footprint(*_peak_and_end(events), None)


def _on_cuda(build: Callable[[], Callable[[], Any]]) -> Footprint:
    gc.collect()
    build()()  # cuBLAS's workspaces, which later providers use as well
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = build()
    for _ in range(CUDA_STEPS):  # the capture's peak is the replay's, which allocates nothing
        step()
    torch.cuda.synchronize()
    peak, kept = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    with _recorded([ProfilerActivity.CPU, ProfilerActivity.CUDA]) as events:
        step()
        torch.cuda.synchronize()
    return Footprint(peak, kept, _kernels(events))


@contextmanager
def _recorded(activities: Sequence[ProfilerActivity], **options: Any) -> Iterator[list[Event]]:
    """Give a list that holds the events of torch.profiler's trace at the end."""
    events: list[Event] = []
    recorder = profile(activities=activities, acc_events=True, **options)  # else torch 2.11 warns
    with _silent():
        recorder.start()
    try:
        yield events
    finally:
        with _silent():
            recorder.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        with path.open() as file:
            events += json.load(file)["traceEvents"]


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the profiler's log, which C++ writes at every start and stop, off standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _peak_and_end(events: Sequence[Event]) -> tuple[int, int]:
    """Return the most bytes that lay in blocks at one time, and those that do at the end.

    By address, for the profiler also knows blocks that an earlier recording saw allocated.
    """
    changes = [event for event in events if event.get("name") == "[memory]"]
    sizes: dict[int, int] = {}
    peak = total = 0
    for change in sorted(changes, key=lambda event: float(event["ts"])):
        address, size = change["args"]["Addr"], change["args"]["Bytes"]
        if size > 0:
            sizes[address] = size
        total += size if size > 0 else -sizes.pop(address, 0)
        peak = max(peak, total)
    return peak, total


def _kernels(events: Sequence[Event]) -> int:
    return sum(event.get("cat") == "kernel" for event in events)
