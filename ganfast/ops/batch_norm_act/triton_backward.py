"""The backward Triton kernels of ``batch_norm_act``; see triton_forward.py.

d is u less its mean and g the gradient that reaches the normalisation.
"""

import triton
import triton.language as tl

from ganfast.ops.batch_norm_act.triton_forward import (
    SIZES,
    activate,
    affine,
    channels,
    gate,
    load,
    load_last,
    load_vector,
    offsets,
)
from ganfast.ops.triton_math import scalar


@triton.jit
def load_stats(stats, split, c, C):
    """Load mean, rstd, scale and shift of one chunk."""
    ACC: tl.constexpr = stats.dtype.element_ty
    rows = stats + split * 4 * C
    mean, rstd = load_vector(rows, c, C, ACC, 0.0), load_vector(rows + C, c, C, ACC, 0.0)
    scale = load_vector(rows + 2 * C, c, C, ACC, 0.0)
    return mean, rstd, scale, load_vector(rows + 3 * C, c, C, ACC, 0.0)


@triton.jit
def total(tile, P: tl.constexpr):
    """Add up a tile's columns: in double, but for the first steps between neighbours in an image.

    Converting a number to double takes as long as several additions. Neighbours are in one lane,
    unless channels are last; then adding them up first would take longer.
    """
    BLOCK_M: tl.constexpr = tile.shape[0]
    if P > 1 and BLOCK_M >= 4:
        tile = tl.sum(tl.reshape(tile, (BLOCK_M // 4, 4, tile.shape[1])), axis=1)
    return tl.sum(tile.to(tl.float64), axis=0)


@triton.jit
def backward_terms(
    x, dy, mean, scale, shift, slope, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr
):
    """Return d and g of a tile."""
    if ACT_NORM:
        return activate(x, slope, ACTIVATION) - mean[None, :], dy
    else:
        d = x - mean[None, :]
        return d, gate(dy, affine(d, scale, shift), slope, ACTIVATION)


@triton.jit
def backward_tile(
    x, d, g, sum_g, sum_gd, rstd, scale, M, slope,
    TRAINING: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr,
):  # fmt: skip
    """Compute dx of a tile."""
    du = g * scale[None, :]
    if TRAINING:  # what the gradients of mean and variance add
        # The scale comes last: it may be so small that its parts would lose digits.
        projection, offset = -scale * (rstd * rstd * sum_gd / M), -scale * (sum_g / M)
        du += d * projection[None, :] + offset[None, :]
    if ACT_NORM:
        du = gate(du, x, slope, ACTIVATION)
    return du


@triton.jit(do_not_specialize=SIZES)
def backward_on_chip(
    dy, x, stats, dx, dweight, dbias, N, C, splits, slope: tl.float64, TRAINING: tl.constexpr,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: all gradients of BLOCK_C channels; x and dy are read once, chunk after chunk."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    c = channels(tl.program_id(0), BLOCK_C, INDEX)
    m = tl.arange(0, BLOCK_M).to(INDEX)
    exists = (m < N * P)[:, None] & (c < C)[None, :]
    M, chunk_size = scalar(N * P, ACC), N * P * C
    slope = scalar(slope, ACC)
    of_weight = tl.zeros((BLOCK_C,), tl.float64)
    of_bias = tl.zeros((BLOCK_C,), tl.float64)
    for split in range(splits):
        at = split * chunk_size + offsets(m, c, C, P)
        mean, rstd, scale, shift = load_stats(stats, split, c, C)
        x_tile, dy_tile = load(x, at, exists, ACC), load(dy, at, exists, ACC)
        d, g = backward_terms(x_tile, dy_tile, mean, scale, shift, slope, ACTIVATION, ACT_NORM)
        sum_g, sum_gd = total(g, P), total(g * d, P)
        of_weight += rstd * sum_gd
        of_bias += sum_g
        if dx is not None:
            dx_tile = backward_tile(
                x_tile, d, g, sum_g.to(ACC), sum_gd.to(ACC), rstd, scale, M, slope,
                TRAINING, ACTIVATION, ACT_NORM,
            )  # fmt: skip
            tl.store(dx + at, dx_tile, mask=exists)
    if dweight is not None:
        tl.store(dweight + c, of_weight, mask=c < C)
        tl.store(dbias + c, of_bias, mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def backward_partial(
    dy, x, stats, partial, N, C, splits, parts, tiles, slope: tl.float64,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: sums of g and g * d of BLOCK_C channels in one part of a chunk."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    block, split, part = tl.program_id(0) // splits, tl.program_id(0) % splits, tl.program_id(1)
    c = channels(block, BLOCK_C, INDEX)
    base = split * N * P * C
    first = part.to(INDEX) * tiles * BLOCK_M
    slope = scalar(slope, ACC)
    mean, rstd, scale, shift = load_stats(stats, split, c, C)
    sums_g = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sums_gd = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for i in range(tiles):
        m = first + i * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = (m < N * P)[:, None] & (c < C)[None, :]
        at = base + offsets(m, c, C, P)
        x_tile, dy_tile = load(x, at, exists, ACC), load(dy, at, exists, ACC)
        d, g = backward_terms(x_tile, dy_tile, mean, scale, shift, slope, ACTIVATION, ACT_NORM)
        sums_g += g
        sums_gd += g * d
    out = partial + (split * parts + part) * 2 * C + c
    tl.store(out, total(sums_g, P), mask=c < C)
    tl.store(out + C, total(sums_gd, P), mask=c < C)


@triton.jit
def summed(partial, split, row, c, C, parts, ROWS: tl.constexpr, BLOCK_S: tl.constexpr):
    """Add up one row of the sums of a chunk's parts, in a fixed order."""
    part = tl.arange(0, BLOCK_S)
    exists = (part < parts)[:, None] & (c < C)[None, :]
    at = ((split * parts + part) * ROWS + row)[:, None] * C + c[None, :]
    return tl.sum(load(partial, at, exists, tl.float64), axis=0)


@triton.jit(do_not_specialize=SIZES)
def backward_apply(
    dy, x, stats, dx, dweight, dbias, partial, N, C, splits, parts, tiles, slope: tl.float64,
    TRAINING: tl.constexpr,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: dx of BLOCK_C channels in one part of a chunk, last part first."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block, split = program // splits, program % splits
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    c = channels(block, BLOCK_C, INDEX)
    if dweight is not None:
        if (split == 0) & (part == 0):
            of_weight = tl.zeros((BLOCK_C,), tl.float64)
            of_bias = tl.zeros((BLOCK_C,), tl.float64)
            for k in range(splits):
                rstd = load_vector(stats + k * 4 * C + C, c, C, tl.float64, 0.0)
                of_weight += rstd * summed(partial, k, 1, c, C, parts, 2, BLOCK_S)
                of_bias += summed(partial, k, 0, c, C, parts, 2, BLOCK_S)
            tl.store(dweight + c, of_weight, mask=c < C)
            tl.store(dbias + c, of_bias, mask=c < C)
    if dx is not None:
        mean, rstd, scale, shift = load_stats(stats, split, c, C)
        sum_g = tl.zeros((BLOCK_C,), ACC)
        sum_gd = tl.zeros((BLOCK_C,), ACC)
        if TRAINING:
            sum_g = summed(partial, split, 0, c, C, parts, 2, BLOCK_S).to(ACC)
            sum_gd = summed(partial, split, 1, c, C, parts, 2, BLOCK_S).to(ACC)
        base = split * N * P * C
        first = part.to(INDEX) * tiles * BLOCK_M
        M = scalar(N * P, ACC)
        slope = scalar(slope, ACC)
        for i in range(tiles):
            m = first + (tiles - 1 - i) * BLOCK_M + tl.arange(0, BLOCK_M)
            exists = (m < N * P)[:, None] & (c < C)[None, :]
            at = base + offsets(m, c, C, P)
            x_tile = load_last(x, at, exists, ACC)
            dy_tile = load_last(dy, at, exists, ACC)
            d, g = backward_terms(x_tile, dy_tile, mean, scale, shift, slope, ACTIVATION, ACT_NORM)
            dx_tile = backward_tile(
                x_tile, d, g, sum_g, sum_gd, rstd, scale, M, slope, TRAINING, ACTIVATION, ACT_NORM
            )
            tl.store(dx + at, dx_tile, mask=exists, eviction_policy="evict_first")
