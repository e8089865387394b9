"""Interleaved timing of functions."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ganfast.bench.case import CALLS_PER_GRAPH, serving

__all__ = ["Timing", "compare"]


class Timing(NamedTuple):
    """Seconds of one call: the median and the quartiles around it."""

    median_s: float
    lower_s: float
    upper_s: float


def compare(
    providers: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 30,
    least_seconds: float = 1e-3,
    device: str | torch.device = "cpu",
    graphs: bool = False,
) -> dict[str, Timing]:
    """Time every provider once in each round, so that a change of the machine affects all alike.

    A measurement is as many calls as fill ``least_seconds``; the result of a call is freed before
    the next call, so outputs are allocated each time, as in autograd. A provider named for a
    backend of ganfast is called with that backend.

    Args:
        providers: functions to time, by name.
        rounds: measurements of each.
        least_seconds: shortest measurement worth taking, for calls of microseconds.
        device: synchronised before the clock is read.
        graphs: time replays of CUDA graphs, without host time. Each graph holds at least
            CALLS_PER_GRAPH calls.

    Examples:
        >>> x = torch.randn(1000)
        >>> list(compare({"clone": x.clone, "sum": x.sum}, rounds=3))
        ['clone', 'sum']
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    timed: dict[str, Any] = {}
    calls: dict[str, int] = {}
    for name, function in providers.items():
        with serving(name):
            timed[name] = _captured(function) if graphs else function
            calls[name] = _calls_to_fill(least_seconds, timed[name], wait)
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(rounds):
        for name, function in timed.items():
            with serving(name):
                each = _time(function, calls[name], wait) / calls[name]
            seconds[name].append(each / function.captured if graphs else each)
    return {name: _summary(values) for name, values in seconds.items()}


def _captured(function: Callable[[], Any]) -> Callable[[], Any]:
    """Capture CALLS_PER_GRAPH calls or more, and whole rotations, each with outputs of its own."""
    period: int = getattr(function, "period", 1)
    captured = period * math.ceil(CALLS_PER_GRAPH / period)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(period * math.ceil(3 / period)):  # no first call may be captured
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [function() for _ in range(captured)]

    def replay() -> Any:
        graph.replay()
        return outputs

    replay.captured = captured  # type: ignore[attr-defined]
    return replay


def _nothing() -> None:
    pass


def _time(function: Callable[[], Any], calls: int, wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    return time.perf_counter() - start


def _calls_to_fill(
    least_seconds: float, function: Callable[[], Any], wait: Callable[[], None]
) -> int:
    calls = 1
    _time(function, 3, wait)  # compilation, caches
    while (elapsed := _time(function, calls, wait)) < least_seconds:
        calls = max(calls + 1, min(10 * calls, int(calls * 1.2 * least_seconds / elapsed)))
    return calls


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper)
