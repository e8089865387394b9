"""``ganfast bench``: time ganfast beside its peers on this machine."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ganfast.bench import SUITES, Case, Options, Timing, compare, fingerprint
from ganfast.bench.case import PASSES
from ganfast.bench.plot import bars
from ganfast.bench.verify import DTYPES
from ganfast.cli.errors import CommandError
from ganfast.cli.options import positive, shape
from ganfast.training import keep_freed_memory

__all__ = ["add_parser", "run"]

PEERS = ("eager", "compile")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="time ganfast beside its peers",
        description="Time ganfast beside torch, interleaved, values compared first. Times are "
        "medians; ratios are the peer's time over ours.",
    )
    parser.add_argument("suite", choices=sorted(SUITES), help="what to time")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where torch sees a GPU)")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=[])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--layout", nargs="+", choices=("NC*", "channels-last"), default=["NC*"])
    parser.add_argument(
        "--shapes", nargs="+", type=shape, metavar="NxCxHxW", default=[], help="such as 64x128x8x8"
    )
    parser.add_argument("--against", nargs="*", choices=PEERS, default=["eager"])
    parser.add_argument("--rounds", type=positive, default=30, help="measurements (default: 30)")
    parser.add_argument(
        "--keep-memory", action="store_true", help="keep freed memory, as ganfast's training does"
    )
    parser.add_argument("--json", metavar="FILE", help="append one JSON object a line")
    parser.add_argument("--plot", metavar="FILE", help="draw bars of the ratios (PNG)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a table, and write the files asked for."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for path in filter(None, (args.json, args.plot)):
        if not Path(path).absolute().parent.is_dir():
            raise CommandError(f"cannot write {path}: there is no folder {Path(path).parent}")
    options = Options(
        device, tuple(args.passes), tuple(args.dtype), tuple(args.layout), tuple(args.shapes),
        tuple(args.against),
    )  # fmt: skip
    machine = {**fingerprint(), "keep_memory": args.keep_memory and keep_freed_memory()}
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))
    try:
        torch.empty(0, device=device)
        rows = list(_measured(args.suite, options, args.rounds))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise CommandError(str(error).partition("\n")[0] or type(error).__name__) from error
    _print_means(rows)
    if args.json:
        with open(args.json, "a") as file:
            for row in rows:
                file.write(json.dumps({**row, "machine": machine}) + "\n")
    if args.plot:
        bars(rows, args.plot)
    return 0


def _measured(suite: str, options: Options, rounds: int) -> Iterable[dict[str, Any]]:
    for case in SUITES[suite](options):
        times = compare(case.providers, rounds=rounds, device=options.device)
        print(_line(case, times), flush=True)
        milliseconds = {name: [1e3 * t for t in time] for name, time in times.items()}
        row: dict[str, Any] = {"suite": suite, "case": case.name, "passes": case.passes}
        yield {**row, "ms": milliseconds, "bytes": case.bytes_moved, "images": case.images}


def _line(case: Case, times: dict[str, Timing]) -> str:
    ours = times["ganfast"].median_s
    spread = (times["ganfast"].upper_s - times["ganfast"].lower_s) / 2
    text = f"{case.name:40} {case.passes:17} {ours * 1e3:9.4f} ms ±{spread / ours:4.0%}"
    if case.bytes_moved:
        text += f" {case.bytes_moved / ours / 1e9:6.1f} GB/s"
        if case.copy_bytes:
            copied = case.copy_bytes / times["clone"].median_s
            text += f" ({case.bytes_moved / ours / copied:4.0%} of a copy)"
    if case.images:
        text += f" {case.images / ours:8.0f} images/s"
    for name, time in times.items():
        if name != "ganfast":
            text += f"  {name} {time.median_s * 1e3:.4f} ms ({time.median_s / ours:.2f})"
    return text


def _print_means(rows: list[dict[str, Any]]) -> None:
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        ours = row["ms"]["ganfast"][0]
        for name, (median, *_) in row["ms"].items():
            if name != "ganfast":
                ratios.setdefault((row["passes"], name), []).append(median / ours)
    for (passes, name), values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"{passes}: {name} takes {mean:.2f} of our time (geometric mean), "
              f"{min(values):.2f} at the least")  # fmt: skip
