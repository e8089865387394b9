"""Time other numbers for the table in ganfast/ops/batch_norm_act/triton_tiling.py, on a GPU.

Usage::

    python benchmarks/tune_triton.py                 # the best row of each op, over DCGAN's layers
    python benchmarks/tune_triton.py --dtype bfloat16

Prints a row for each op as the table holds it, by the geometric mean of the times of its kernels
over all shapes and layouts. It takes minutes; the exit code is 2 without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys

import torch

SHAPES = [(128, 512, 4, 4), (128, 256, 8, 8), (128, 128, 16, 16), (128, 64, 32, 32), (256, 1024)]
SHAPES += [(64, 64, 128, 128)]
CANDIDATES = {
    "on_chip": (4096, 8192, 16384, 32768),
    "tile": (1024, 2048, 4096),
    "per_lane": (8, 16),
    "programs": (264, 528, 1056),
    "parts": (32, 128),
}


def calls(dtype: torch.dtype, op: str) -> list:
    """Return a call of one op for each shape and layout."""
    from ganfast.ops.batch_norm_act import triton as kernels

    found = []
    for shape, channels_last in itertools.product(SHAPES, (False, True)):
        if channels_last and len(shape) == 2:
            continue
        x = torch.randn(shape, device="cuda", dtype=dtype)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        vector = torch.ones(shape[1], device="cuda")
        act = ("leaky_relu", 0.2, "norm_act")
        train = (x, vector, vector, None, None, None, 0.1, 1e-5, *act, 1)
        _, stats = kernels.train(*train)
        constants = (x, vector, stats, 1e-5, True, *act)
        arguments = {
            "train": train,
            "evaluate": (x, vector, vector, vector, vector, 1e-5, *act),
            "backward": (x, *constants, True, True),
            "double_backward": (x, vector, vector, x, *constants),
        }[op]
        found.append((getattr(kernels, op), arguments))
    return found


def time_ms(op: str, row: tuple[int, ...], found: list) -> float:
    """Return the geometric mean of the calls' times with one row of the table."""
    import triton

    from ganfast.ops.batch_norm_act import triton as kernels
    from ganfast.ops.batch_norm_act import triton_tiling

    triton_tiling.TABLE[op] = triton_tiling.Row(*row)
    triton_tiling.plan.cache_clear()
    kernels._call.cache_clear()
    logarithms = 0.0
    for function, arguments in found:
        logarithms += math.log(
            triton.testing.do_bench_cudagraph(lambda f=function, a=arguments: f(*a), rep=10)
        )
    return math.exp(logarithms / len(found))


def main() -> int:
    """Tune every op, one column of the table after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune_triton: torch sees no GPU", file=sys.stderr)
        return 2
    from ganfast.ops.batch_norm_act.triton_tiling import TABLE

    for op in ("train", "evaluate", "backward", "double_backward"):
        found = calls(getattr(torch, args.dtype), op)
        best = TABLE[op]._asdict()
        best_ms = before_ms = time_ms(op, tuple(best.values()), found)
        for column, values in CANDIDATES.items():
            for value in values:
                row = {**best, column: value}
                if row["on_chip"] and op == "evaluate":
                    continue
                elapsed_ms = time_ms(op, tuple(row.values()), found)
                if elapsed_ms < best_ms:
                    best, best_ms = row, elapsed_ms
        numbers = ", ".join(f"{name}={value}" for name, value in best.items())
        print(f'    "{op}": Row({numbers}),  # {before_ms:.4f} ms before, {best_ms:.4f} now')
    return 0


if __name__ == "__main__":
    sys.exit(main())
