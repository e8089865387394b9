"""Measure BatchNorm + activation over the DCGAN shapes, beside torch and a plain copy.

    python benchmarks/ops.py [--passes forward] [--dtype bfloat16] [--channels-last] [--json FILE]

Times are medians of interleaved rounds; ratios are the peer's time over ours.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

import torch

from ganfast.bench import compare, fingerprint
from ganfast.bench.batch_norm_act import DCGAN_SHAPES, PASSES, TINY_SHAPE, cases
from ganfast.training import keep_freed_memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    for passes in args.passes:
        for dtype in args.dtype:
            for channels_last in args.channels_last:
                rows += run(passes, dtype, bool(channels_last), args)
    if args.json:
        with open(args.json, "a") as file:
            for row in rows:
                file.write(json.dumps({**row, "machine": machine}) + "\n")
    return 0


def run(
    passes: str, dtype: str, channels_last: bool, args: argparse.Namespace
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    ratios: dict[str, list[float]] = {}
    shapes = (TINY_SHAPE,) if args.tiny else DCGAN_SHAPES
    print(f"\n{passes}")
    for shape in shapes:
        (case,) = cases(
            passes, shapes=(shape,), dtype=getattr(torch, dtype), channels_last=channels_last,
            against=tuple(args.against),
        )  # fmt: skip
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
        rows.append(
            {"op": "batch_norm_act", "case": case.name, "passes": passes, "ms": milliseconds}
        )
    for name, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"{name}: geometric mean {mean:.2f}, least {min(values):.2f}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
