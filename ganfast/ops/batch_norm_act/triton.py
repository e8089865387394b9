"""The host code of ``batch_norm_act``'s Triton kernels: what is launched, and how.

Arguments and results are those of reference.py.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.ops.batch_norm_act import triton_backward as backward_kernels
from ganfast.ops.batch_norm_act import triton_double_backward as double_backward_kernels
from ganfast.ops.batch_norm_act import triton_forward as forward_kernels
from ganfast.ops.batch_norm_act.triton_tiling import Plan, plan
from ganfast.ops.tensors import accumulation_dtype, empty_like
from ganfast.ops.triton_launch import dense, launch


class _Call(NamedTuple):
    """The sizes of one call: ``splits`` chunks of N images with P positions and C channels.

    If channels are last, or there is one position, N counts rows and P is 1.
    """

    N: int
    C: int
    P: int
    splits: int
    plan: Plan
    constants: dict[str, Any]

    @property
    def blocks(self) -> int:
        return -(-self.C // self.plan.block_c)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.N, self.C, self.splits

    @property
    def parted_sizes(self) -> tuple[int, int, int, int, int]:
        return self.N, self.C, self.splits, self.plan.parts, self.plan.tiles

    @property
    def grid(self) -> tuple[int, int]:
        """Return a grid of all blocks of channels and chunks, times all parts of a chunk."""
        return self.blocks * self.splits, self.plan.parts

    def partial(self, stats: Tensor, rows: int) -> Tensor:
        """Allocate what a first kernel writes: ``rows`` sums for each part and channel."""
        shape = (self.splits, self.plan.parts, rows, self.C)
        return stats.new_empty(shape, dtype=torch.float64)

    def merging(self) -> dict[str, Any]:
        """Return the constants of a kernel that merges the parts."""
        return {**self.constants, "BLOCK_S": triton.next_power_of_2(self.plan.parts)}


@lru_cache(maxsize=4096)
def _call(
    kernel: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    splits: int,
    activation: str | None,
    order: str,
) -> _Call:
    C, positions, elements = shape[1], math.prod(shape[2:]), math.prod(shape)
    P = positions if memory_format == torch.contiguous_format else 1
    N = elements // (C * P * splits)
    chosen = plan(kernel, dtype.itemsize, N, C, P)
    constants = {
        "P": P,
        "ACTIVATION": activation,
        "ACT_NORM": order == "act_norm" and activation is not None,
        # Parts and tiles may end beyond the last value, by as many values again.
        "INDEX": tl.int32 if elements < 2**30 else tl.int64,
        "BLOCK_M": chosen.block_m,
        "BLOCK_C": chosen.block_c,
        "num_warps": chosen.warps,
    }
    return _Call(N, C, P, splits, chosen, constants)


def train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Normalise with the batch's own statistics and update the running ones in place."""
    *buffers, momentum, eps, activation, negative_slope, order, splits = rest
    running_mean, running_var, num_batches_tracked = buffers
    stats = x.new_empty((splits, 4, x.shape[1]), dtype=accumulation_dtype(x))
    memory_format = suggest_memory_format(x)
    y = empty_like(x)
    weight, bias = dense(weight), dense(bias)
    if x.numel() == 0:  # torch counts an empty batch, and leaves the statistics
        if num_batches_tracked is not None:
            num_batches_tracked.add_(splits)
        stats.zero_()
        if bias is not None:
            stats[:, 3] = bias
        return y, stats
    cumulative = momentum is None
    # An average over all batches takes two kernels: the first counts them, the second divides.
    kernel = "train_cumulative" if cumulative else "train"
    call = _call(kernel, x.shape, x.dtype, memory_format, splits, activation, order)
    x = x.contiguous(memory_format=memory_format)
    running = (dense(running_mean), dense(running_var))
    vectors = (weight, bias, *running, num_batches_tracked)
    numbers = (0.0 if momentum is None else momentum, eps, negative_slope)
    if call.plan.on_chip:
        launch(
            forward_kernels.train_on_chip, (call.blocks,), x,
            x, y, *vectors, stats, *call.sizes, *numbers, **call.constants,
        )  # fmt: skip
    else:
        partial = call.partial(stats, 2)
        launch(
            forward_kernels.train_partial, call.grid, x,
            x, num_batches_tracked, partial, *call.parted_sizes, negative_slope,
            ACC=tl.float64 if x.dtype == torch.float64 else tl.float32, **call.constants,
        )  # fmt: skip
        launch(
            forward_kernels.train_apply, call.grid, x,
            x, y, *vectors, stats, partial, *call.parted_sizes, *numbers,
            CUMULATIVE=cumulative and running_mean is not None, **call.merging(),
        )  # fmt: skip
    for buffer, updated in zip((running_mean, running_var), running, strict=True):
        if buffer is not updated and buffer is not None and updated is not None:
            buffer.copy_(updated)
    return y, stats


def evaluate(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Normalise with the running statistics."""
    running_mean, running_var, eps, activation, negative_slope, order = rest
    memory_format = suggest_memory_format(x)
    shape = x.shape
    if x.numel() == 0:  # the statistics are results too: those of an image that is not read
        shape = torch.Size((1, x.shape[1]))
        memory_format = torch.contiguous_format
    call = _call("evaluate", shape, x.dtype, memory_format, 1, activation, order)
    x = x.contiguous(memory_format=suggest_memory_format(x))
    y = torch.empty_like(x)
    stats = x.new_empty((1, 4, x.shape[1]), dtype=accumulation_dtype(x))
    N = call.N if x.numel() else 0
    launch(
        forward_kernels.evaluate, call.grid, x,
        x, y, dense(weight), dense(bias), dense(running_mean), dense(running_var), stats,
        N, call.C, call.plan.tiles, eps, negative_slope, **call.constants,
    )  # fmt: skip
    return y, stats


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dx in x's dtype, dweight and dbias in the dtype of ``stats``."""
    _, training, activation, negative_slope, order, need_dx, need_affine = rest
    memory_format, splits, C = suggest_memory_format(x), stats.shape[0], x.shape[1]
    dx = empty_like(x) if need_dx else None
    dweight, dbias = (stats.new_empty(C) if need_affine else None for _ in range(2))
    results = (
        x.new_empty(0) if dx is None else dx,
        stats.new_empty(0) if dweight is None else dweight,
        stats.new_empty(0) if dbias is None else dbias,
    )
    if x.numel() == 0:
        return results[0], results[1].zero_(), results[2].zero_()
    call = _call("backward", x.shape, x.dtype, memory_format, splits, activation, order)
    dy, x = (t.contiguous(memory_format=memory_format) for t in (dy, x))
    if call.plan.on_chip:
        launch(
            backward_kernels.backward_on_chip, (call.blocks,), x,
            dy, x, stats, dx, dweight, dbias, *call.sizes, negative_slope,
            TRAINING=training, **call.constants,
        )  # fmt: skip
        return results
    partial = call.partial(stats, 2) if need_affine or training else None
    if partial is not None:
        launch(
            backward_kernels.backward_partial, call.grid, x,
            dy, x, stats, partial, *call.parted_sizes, negative_slope, **call.constants,
        )  # fmt: skip
    launch(
        backward_kernels.backward_apply,
        call.grid if need_dx else (call.grid[0], 1), x,
        dy, x, stats, dx, dweight, dbias, partial, *call.parted_sizes, negative_slope,
        TRAINING=training, **call.merging(),
    )  # fmt: skip
    return results


def double_backward(
    ddx: Tensor | None,
    ddweight: Tensor | None,
    ddbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate ``backward`` with respect to dy, x and weight."""
    _, stats, _, training, activation, negative_slope, order = rest
    memory_format, splits = suggest_memory_format(x), stats.shape[0]
    d_dy, d_x = empty_like(x, dy.dtype), empty_like(x)
    d_weight = stats.new_empty(x.shape[1])
    if x.numel() == 0:
        return d_dy, d_x, d_weight.zero_()
    call = _call("double_backward", x.shape, x.dtype, memory_format, splits, activation, order)
    ddx = None if ddx is None else ddx.contiguous(memory_format=memory_format)
    dy, x = (t.contiguous(memory_format=memory_format) for t in (dy, x))
    vectors = (dense(ddweight), dense(ddbias))
    if call.plan.on_chip:
        launch(
            double_backward_kernels.double_backward_on_chip, (call.blocks,), x,
            ddx, *vectors, dy, x, stats, d_dy, d_x, d_weight, *call.sizes, negative_slope,
            TRAINING=training, **call.constants,
        )  # fmt: skip
        return d_dy, d_x, d_weight
    partial = call.partial(stats, 5)
    launch(
        double_backward_kernels.double_backward_partial, call.grid, x,
        ddx, dy, x, stats, partial, *call.parted_sizes, negative_slope, **call.constants,
    )  # fmt: skip
    launch(
        double_backward_kernels.double_backward_apply, call.grid, x,
        ddx, *vectors, dy, x, stats, d_dy, d_x, d_weight, partial, *call.parted_sizes,
        negative_slope, TRAINING=training, **call.merging(),
    )  # fmt: skip
    return d_dy, d_x, d_weight
