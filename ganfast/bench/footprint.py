"""Peak memory of a training step, and its number of kernels on a GPU."""

from __future__ import annotations

import gc
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["Footprint", "footprint"]

CPU_STEPS = 2
"""The second step has the gradients and optimizer states of the first."""
CUDA_STEPS = 6
"""GANStep warms up in three steps and captures the fourth into a graph."""

Event = Mapping[str, Any]

BUILD = "ganfast: build"
PARTS = {
    "networks and images": f"{BUILD}|^aten::(to|contiguous|clone)$",
    "optimizers": r"Optimizer\.step",
    "backward": "autograd::",
    "convolutions": "conv",
    "normalisation and activations": "norm|relu|tanh",
}
"""Parts of a step, and a pattern in the name of the outermost operation that allocates. The first
that fits counts; what fits none is the part "other". The second half of the first pattern is copies
in another layout or precision, of an optimizer's states too."""


class Footprint(NamedTuple):
    """Memory and kernels of one provider, without the images it trains on.

    Attributes:
        peak_bytes: peak of the memory of torch's allocator since the networks were built:
            parameters, gradients, optimizer states, activations.
        kept_bytes: the part that is still allocated after a step.
        kernels: kernels of one step on the GPU; None on the CPU.
        parts: bytes of the peak by the part of the step that allocated them, see ``PARTS``;
            gradients count as backward's. Empty on a GPU.
    """

    peak_bytes: int
    kept_bytes: int
    kernels: int | None
    parts: Mapping[str, int]


def footprint(build: Callable[[], Callable[[], Any]], device: str = "cpu") -> Footprint:
    """Build a provider, run its first steps and measure memory and kernels.

    On a GPU torch's allocator has the peak. On the CPU torch.profiler records each allocation and
    release, whose running sum has it. Resident memory is not used: it includes what the C library
    keeps, and what earlier providers have left. Memory outside of torch's allocator (oneDNN's, and
    a few doubles a channel in ganfast's kernels) is not counted.

    Args:
        build: builds networks and optimizers, and returns their step.
        device: of the networks.

    Examples:
        >>> kept = torch.zeros(250)
        >>> footprint(lambda: torch.zeros(1000).clone).peak_bytes
        8000
    """
    if torch.device(device).type == "cuda":
        return _on_cuda(build)
    gc.collect()  # later releases are then the provider's own
    with _recorded([ProfilerActivity.CPU], profile_memory=True) as events:
        with record_function(BUILD):
            step = build()
        for _ in range(CPU_STEPS):
            step()
    del step
    live, kept = _peak_and_end(events)
    return Footprint(_total(live), _total(kept), None, _by_part(live, events))


def _on_cuda(build: Callable[[], Callable[[], Any]]) -> Footprint:
    gc.collect()
    build()()  # cuBLAS's workspaces, which later providers use as well
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = build()
    for _ in range(CUDA_STEPS):  # a replay allocates nothing: its peak is the capture's
        step()
    torch.cuda.synchronize()
    peak, kept = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    with _recorded([ProfilerActivity.CPU, ProfilerActivity.CUDA]) as events:
        step()
        torch.cuda.synchronize()
    return Footprint(peak, kept, _kernels(events), {})


@contextmanager
def _recorded(activities: Sequence[ProfilerActivity], **options: Any) -> Iterator[list[Event]]:
    """Give a list that holds the events of torch.profiler's trace after the block."""
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


def _peak_and_end(events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """Return the allocations that are live at the peak of their sum, and at the end.

    By address, since the profiler also records the release of blocks from before.
    """
    changes = [event for event in events if event.get("name") == "[memory]"]
    live: dict[int, Event] = {}
    at_peak: list[Event] = []
    peak = total = 0
    for change in sorted(changes, key=lambda event: float(event["ts"])):
        address, size = change["args"]["Addr"], change["args"]["Bytes"]
        if size > 0:
            live[address] = change
        elif address in live:
            size = -live.pop(address)["args"]["Bytes"]
        else:
            continue
        total += size
        if total > peak:
            peak, at_peak = total, list(live.values())
    return at_peak, list(live.values())


def _total(allocations: Sequence[Event]) -> int:
    return sum(allocation["args"]["Bytes"] for allocation in allocations)


def _by_part(allocations: Sequence[Event], events: Sequence[Event]) -> dict[str, int]:
    """Return the bytes of allocations by the part of a step, ``PARTS``, that made them."""
    spans = [event for event in events if event.get("cat") in ("cpu_op", "user_annotation")]
    found = dict.fromkeys((*PARTS, "other"), 0)
    for allocation in allocations:
        around = [span for span in spans if 0 <= allocation["ts"] - span["ts"] <= span["dur"]]
        outermost = min(around, key=lambda span: float(span["ts"]), default={"name": ""})
        fitting = (part for part, name in PARTS.items() if re.search(name, outermost["name"]))
        found[next(fitting, "other")] += allocation["args"]["Bytes"]
    return found


def _kernels(events: Sequence[Event]) -> int:
    return sum(event.get("cat") == "kernel" for event in events)
