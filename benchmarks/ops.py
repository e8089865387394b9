"""Measure the ops beside torch and a plain copy or sum.

    python benchmarks/ops.py [--op batch_norm_act|losses] [--passes forward] [--json FILE]

Times are medians of interleaved rounds; ratios are the peer's time over ours.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable

import torch

from ganfast.bench import batch_norm_act, compare, fingerprint, losses
from ganfast.bench.batch_norm_act import DCGAN_SHAPES, PASSES, TINY_SHAPE
from ganfast.bench.case import Case
from ganfast.training import keep_freed_memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=("batch_norm_act", "losses"), default="batch_norm_act")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES[:2])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--channels-last", nargs="+", type=int, choices=(0, 1), default=[0])
    parser.add_argument("--against", nargs="*", default=["eager"])
    parser.add_argument("--tiny", action="store_true", help="one tensor of 256 values: host time")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--keep-memory", action="store_true", help="as ganfast's training loop: keep_freed_memory()"
    )
    parser.add_argument("--json", help="append the results to this file, one JSON object a line")
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    machine = {**fingerprint(), "keep_memory": args.keep_memory and keep_freed_memory()}
    print(machine)
    rows = []
    against = tuple(args.against)
    for passes in args.passes:
        if args.op == "losses":
            rows += run(passes, losses.cases(passes, against=against), args)
            continue
        shapes = (TINY_SHAPE,) if args.tiny else DCGAN_SHAPES
        for dtype in args.dtype:
            for channels_last in args.channels_last:
                built = (
                    batch_norm_act.cases(
                        passes, shapes=(shape,), dtype=getattr(torch, dtype),
                        channels_last=bool(channels_last), against=against,
                    )[0]
                    for shape in shapes
                )  # fmt: skip
                rows += run(passes, built, args)
    if args.json:
        with open(args.json, "a") as file:
            for row in rows:
                file.write(json.dumps({**row, "machine": machine}) + "\n")
    return 0


def run(passes: str, cases: Iterable[Case], args: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    ratios: dict[str, list[float]] = {}
    print(f"\n{passes}")
    for case in cases:
        times = compare(case.providers, rounds=args.rounds)
        ours = times["ganfast"].median_s
        text = f"{case.name:40}"
        for name, time in times.items():
            text += f"  {name} {time.median_s * 1e3:8.4f} ms"
            if name != "ganfast":
                ratios.setdefault(name, []).append(time.median_s / ours)
                text += f" ({time.median_s / ours:5.2f})"
        print(text, flush=True)
        milliseconds = {name: [1e3 * t for t in time] for name, time in times.items()}
        rows.append({"op": args.op, "case": case.name, "passes": passes, "ms": milliseconds})
    for name, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"{name}: geometric mean {mean:.2f}, least {min(values):.2f}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
