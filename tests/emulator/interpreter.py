"""Triton's interpreter as the tests run it: on the CPU, where TRITON_INTERPRET=1 is set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TOO_SLOW = (
    "large_input", "gradcheck", "same_bits", "any_shape_and_stride", "70001", "30, 30", "odd_size",
    "3, 600", "8, 64, 4, 4", "4, 33", "4, 70", "12, 70", "12, 40", "16, 2, 32", "(1000,)", "4097",
    "stands_for_a_filled", "at_the_ends", "logits_of_any_size", "one_unusual", "test_labels",
)  # fmt: skip
"""Parts of the names of tests that take minutes here: a line of a kernel takes 0.1 ms a program.
What they are about is the same formulas on more values, larger or unusual ones; a GPU runs them."""


def is_too_slow(name: str) -> bool:
    """Say whether a test is left out here."""
    return "[triton" in name and any(part in name for part in TOO_SLOW)


def prepare() -> None:
    """Make the interpreter quicker, and its bfloat16 and its sums those of a GPU."""
    _prepare_modules_once()
    _round_bfloat16()
    _sum_in_a_tree()


def _prepare_modules_once() -> None:
    """Keep it from preparing a module again at each call between kernels: half of all time.

    The launch has prepared triton.language, and what is prepared inside of it stays.
    """
    from triton.runtime import interpreter

    prepared = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def _round_bfloat16() -> None:
    """Round to bfloat16 as a GPU does; the interpreter cuts off, and loses subnormal numbers."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
            return rounded.view(torch.uint16).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return (values.astype(np.uint32) << 16).view(np.float32)
        return convert(values, source, target, mode)

    interpreter._convert_float = rounding


def _sum_in_a_tree() -> None:
    """Add up a tile as threads of a GPU do, by halves; numpy adds rows one after another.

    The error of one sum of n values grows with log(n) instead of n.
    """
    from triton.runtime import interpreter

    def tree(self: Any, block: Any) -> Any:
        values = np.moveaxis(block.handle.data, self.axis or 0, 0)
        if self.axis is None:
            values = block.handle.data.reshape(-1)
        while len(values) > 1:  # tiles have powers of two in each dimension
            values = values[: len(values) // 2] + values[len(values) // 2 :]
        total = np.moveaxis(values, 0, self.axis or 0) if self.keep_dims else values[0]
        return self.to_tensor(total, block.dtype)

    interpreter.ReduceOps.sum = tree
