"""The Triton kernels of ``binary_cross_entropy``. Tensors have one order of memory, x's.

Arithmetic is in float32, or in float64 for float64.
"""

import triton
import triton.language as tl

from ganfast.ops.triton_losses import loss_of, slope_of
from ganfast.ops.triton_math import divide, scalar


@triton.jit
def load_or(pointer, i, exists, otherwise, ACC: tl.constexpr):
    """Load values i of a tensor, or a number where there is no tensor."""
    if pointer is None:
        return scalar(otherwise, ACC)
    else:
        return tl.load(pointer + i, mask=exists, other=0.0).to(ACC)


@triton.jit
def weighted_loss(
    x, target, label, weight, pos_weight, i, exists, KIND: tl.constexpr, ACC: tl.constexpr
):
    """Compute the losses of scores i."""
    # Beyond the end stands 0.5, which has a loss of either kind.
    u = tl.load(x + i, mask=exists, other=0.5).to(ACC)
    t = load_or(target, i, exists, label, ACC)
    y = loss_of(u, t, load_or(pos_weight, i, exists, 1.0, ACC), KIND)
    return y * load_or(weight, i, exists, 1.0, ACC)


@triton.jit
def losses(
    x, target, label: tl.float64, weight, pos_weight, y, n,
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the losses of BLOCK scores."""
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = i < n
    y_block = weighted_loss(x, target, label, weight, pos_weight, i, exists, KIND, ACC)
    tl.store(y + i, y_block, mask=exists)


@triton.jit
def sums(
    x, target, label: tl.float64, weight, pos_weight, y, n, tiles, divisor, LAST: tl.constexpr,
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the sum of the losses of some blocks; over ``divisor``, if it is the LAST."""
    first = tl.program_id(0).to(INDEX) * tiles * BLOCK
    lanes = tl.zeros((BLOCK,), ACC)
    for k in range(tiles):
        i = first + k * BLOCK + tl.arange(0, BLOCK)
        exists = i < n
        y_block = weighted_loss(x, target, label, weight, pos_weight, i, exists, KIND, ACC)
        lanes += tl.where(exists, y_block, 0.0)
    # In double from here on, as on the CPU: few numbers, and a large loss drowns no small ones.
    total = tl.sum(lanes.to(tl.float64), axis=0)
    if divisor is not None:
        total = total / scalar(divisor, tl.float64)
    if LAST:
        total = total.to(ACC)
    tl.store(y + tl.program_id(0), total)


@triton.jit
def merge(partial, y, parts, divisor, ACC: tl.constexpr, BLOCK_S: tl.constexpr):
    """One program: the sum of all parts, in an order that is always one."""
    part = tl.arange(0, BLOCK_S)
    total = tl.sum(tl.load(partial + part, mask=part < parts, other=0.0), axis=0)
    if divisor is not None:
        total = total / scalar(divisor, tl.float64)
    tl.store(y, total.to(ACC))


@triton.jit
def gradients(
    dy, x, target, label: tl.float64, weight, pos_weight, dx, n, divisor,
    EACH: tl.constexpr,
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: dx of BLOCK scores. EACH has its dy, or one dy belongs to all."""
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = i < n
    u = tl.load(x + i, mask=exists, other=0.5).to(ACC)
    t = load_or(target, i, exists, label, ACC)
    slope = slope_of(u, t, load_or(pos_weight, i, exists, 1.0, ACC), KIND)
    if EACH:
        incoming = tl.load(dy + i, mask=exists, other=0.0).to(ACC)
    else:
        incoming = tl.load(dy).to(ACC)
        if divisor is not None:
            incoming = divide(incoming, scalar(divisor, ACC))
    dx_block = slope * (incoming * load_or(weight, i, exists, 1.0, ACC))
    tl.store(dx + i, dx_block, mask=exists)
