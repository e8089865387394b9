"""Time other settings of the CUDA kernels of batch_norm_act, on a GPU.

Usage::

    python benchmarks/tune_cuda.py                          # ten minutes at most
    python benchmarks/tune_cuda.py --minutes 4 --only pdl clusters wanted_items
    python benchmarks/tune_cuda.py --dry-run                # without a GPU: all of it but the times

Changes one setting of ``GANFAST_CUDA`` after the other and keeps what is faster, by the geometric
mean over DCGAN's layers, both layouts, float32 and bfloat16, forward, backward and double backward.
Writes each measurement as it is made, a JSON object a line, and prints the defaults for
``csrc/cuda/settings.h`` that follow. The exit code is 2 without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [(512, 4), (256, 8), (128, 16), (64, 32)]
BATCHES = [64, 256]
CANDIDATES = {
    "pdl": (0, 1),
    "clusters": (0, 1),
    "on_chip": (0, 1),
    "wanted_items": (2, 4, 8),
    "preferred_threads": (256, 512),
    "most_cluster": (4, 8),
    "least_units_of_block": (64, 128, 256),
    "row_bytes": (64, 128, 256),
    "blocks_of_multiprocessor": (1, 2, 4),
    "most_waves": (1, 4),
    "least_items": (4, 8, 16),
    "fewest_items": (1, 2, 4),
    "finish_items": (4, 16, 64),
    "streaming_kib": (0, -1, 1 << 20),
    "threads": (128, 256),
}
CACHE_BYTES = 128 << 20
"""Inputs of one measurement together, so that none is left in a cache from the call before."""
LEAST_GAIN = 1.01
"""Below this a setting stays as it was."""


class Case(NamedTuple):
    """One op on one tensor.

    Attributes:
        name: op, shape, layout and dtype.
        calls: the same call on one input after the other.
    """

    name: str
    calls: list[Callable[[], Any]]


class Settings:
    """The settings of a library of CUDA kernels."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for function in ("ganfast_cuda_configure", "ganfast_cuda_settings"):
            getattr(self._library, function).restype = ctypes.c_char_p

    def current(self) -> dict[str, int]:
        """Return the value of every setting."""
        text = self._library.ganfast_cuda_settings().decode()
        return {name: int(value) for name, _, value in (i.partition("=") for i in text.split())}

    def choose(self, settings: dict[str, int]) -> None:
        """Replace all settings.

        Raises:
            ValueError: one of them does not exist or may not have that value.
        """
        text = " ".join(f"{name}={value}" for name, value in settings.items())
        if error := self._library.ganfast_cuda_configure(text.encode()).decode():
            raise ValueError(error)


def settings_alone() -> Settings:
    """Compile the settings without any kernel, which a C++ compiler can."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "settings.so"
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", "-x", "c++"]
        command += [f"-I{ROOT / 'csrc'}", str(ROOT / "csrc/cuda/settings.cu"), "-o", str(library)]
        subprocess.run(command, check=True)
        return Settings(library)


def cases(device: str, batches: list[int], cache_bytes: int) -> Iterator[Case]:
    """Return every op on every layer, layout and dtype."""
    layouts = (torch.contiguous_format, torch.channels_last)
    dtypes = (torch.float32, torch.bfloat16)
    for batch, (channels, side), layout, dtype in itertools.product(
        batches, LAYERS, layouts, dtypes
    ):
        shape = (batch, channels, side, side)
        size_bytes = math.prod(shape) * dtype.itemsize
        count = max(2, math.ceil(cache_bytes / size_bytes))
        xs = [
            torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout)
            for _ in range(count)
        ]
        layout_name = "NC*" if layout == torch.contiguous_format else "channels-last"
        name = f"{'x'.join(map(str, shape))} {layout_name} {str(dtype).removeprefix('torch.')}"
        for op, calls in calls_on(xs).items():
            yield Case(f"{op} {name}", calls)


def calls_on(xs: list[torch.Tensor]) -> dict[str, list[Callable[[], Any]]]:
    """Return each op's calls on some inputs; dy is the next of them."""
    from ganfast.ops import batch_norm_act as ops

    act = ("leaky_relu", 0.2, "norm_act")
    weight = torch.ones(xs[0].shape[1], device=xs[0].device)
    found: dict[str, list[Callable[[], Any]]] = {"train": [], "backward": [], "double_backward": []}
    for x, dy in zip(xs, xs[1:] + xs[:1], strict=True):
        forward = (x, weight, weight, None, None, None, 0.1, 1e-5, *act, 1)
        stats = ops.train(*forward)[1]
        constants = (x, weight, stats, 1e-5, True, *act)
        found["train"].append(lambda a=forward: ops.train(*a))
        found["backward"].append(lambda a=(dy, *constants, True, True): ops.backward(*a))
        found["double_backward"].append(
            lambda a=(x, weight, weight, dy, *constants): ops.double_backward(*a)
        )
    return found


def graph_us(case: Case) -> float:
    """Return the microseconds of one call, from replays of a CUDA graph of all of the case's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.calls[0]()  # no first call may be captured
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in case.calls:
            call()
    graph.replay()
    replays_us = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        replays_us.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(replays_us) / len(case.calls)


def rehearsed_us(case: Case) -> float:
    """Run a call of the case, and return a time that a rehearsal may find in place of its own."""
    case.calls[0]()
    return 10.0 + sum(case.name.encode()) % 7


class Tuner:
    """Measures settings until its time is up."""

    def __init__(
        self,
        settings: Settings,
        found: list[Case],
        time_us: Callable[[Case], float],
        out: TextIO,
        minutes: float,
    ) -> None:
        self.settings, self.cases, self.time_us, self.out = settings, found, time_us, out
        self.defaults = settings.current()
        self.ends = time.monotonic() + 60 * minutes

    def is_time_up(self) -> bool:
        """Say whether nothing more should be begun."""
        return time.monotonic() > self.ends

    def mean_us(self, settings: dict[str, int]) -> float:
        """Return the geometric mean of the cases' times; infinite if time is up before its end."""
        self.settings.choose(settings)
        changed = {k: v for k, v in settings.items() if v != self.defaults[k]}
        logarithms = 0.0
        for case in self.cases:
            if self.is_time_up():
                return math.inf
            elapsed_us = self.time_us(case)
            line = {"case": case.name, "us": round(elapsed_us, 3), "changed": changed}
            print(json.dumps(line), file=self.out, flush=True)
            logarithms += math.log(elapsed_us)
        return math.exp(logarithms / len(self.cases))

    def tune(self, candidates: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int, float]]:
        """Return default, best value and gain of each setting that was tried to its end."""
        best = dict(self.defaults)
        best_us = self.mean_us(best)
        print(f"defaults: {best_us:.3f} us, the geometric mean of {len(self.cases)} cases")
        gains: dict[str, tuple[int, int, float]] = {}
        for name, values in candidates.items():
            before_us, chosen = best_us, best[name]
            for value in values:
                if value == best[name]:
                    continue
                elapsed_us = self.mean_us({**best, name: value})
                if math.isinf(elapsed_us):
                    return gains
                print(f"{name}={value}: {elapsed_us:.3f} us, {before_us / elapsed_us:.3f} times")
                if best_us > LEAST_GAIN * elapsed_us:
                    best_us, chosen = elapsed_us, value
            best[name] = chosen
            gains[name] = (self.defaults[name], chosen, before_us / best_us)
        return gains


def table(gains: dict[str, tuple[int, int, float]]) -> str:
    """Return the table of thresholds in Markdown, with the defaults that settings.h should have."""
    lines = ["| setting | default | best | times as fast |", "|---|---|---|---|"]
    for name, (default, best, gain) in gains.items():
        lines.append(f"| {name} | {default} | {best} | {gain:.3f} |")
    changed = " ".join(
        f"{name}={best}" for name, (default, best, _) in gains.items() if best != default
    )
    lines.append(f'\nGANFAST_CUDA="{changed}"' if changed else "\nThe defaults stay as they are.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Tune each setting in turn, and print the table."""
    import ganfast
    from ganfast.ops import extension

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after as many")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=CANDIDATES, default=[*CANDIDATES]
    )
    parser.add_argument("--out", type=Path, default=Path("tune_cuda.jsonl"))
    parser.add_argument("--dry-run", action="store_true", help="tiny tensors on the CPU, no times")
    args = parser.parse_args(arguments)
    if not args.dry_run and "native" not in ganfast.backend.available("cuda"):
        print(f"tune_cuda: no CUDA kernels to time\n{ganfast.backend.explain()}", file=sys.stderr)
        return 2
    candidates = {name: CANDIDATES[name] for name in args.only}
    with args.out.open("w") as out:
        if args.dry_run:
            settings, found, time_us = settings_alone(), list(cases("cpu", [1], 0)), rehearsed_us
            print(table(Tuner(settings, found, time_us, out, args.minutes).tune(candidates)))
            return 0
        settings = Settings(extension.library("cuda"))
        with ganfast.backend.use("native"):
            found = list(cases("cuda", BATCHES, CACHE_BYTES))
            print(table(Tuner(settings, found, graph_us, out, args.minutes).tune(candidates)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
