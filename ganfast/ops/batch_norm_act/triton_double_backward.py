"""The double backward Triton kernels of ``batch_norm_act``; see triton_backward.py.

v is the gradient of du. The derivation is beside the eager kernel; here h = d * rstd, and the means
of e and e h follow from five sums: of v, g, v d, g d and v g.
"""

import triton
import triton.language as tl

from ganfast.ops.batch_norm_act.triton_backward import (
    backward_terms,
    load_stats,
    summed,
    total,
)
from ganfast.ops.batch_norm_act.triton_forward import (
    SIZES,
    affine,
    channels,
    gate,
    load,
    load_vector,
    offsets,
)
from ganfast.ops.triton_math import scalar


@triton.jit
def load_terms(
    ddx, dy, x, at, exists, mean, scale, shift, slope,
    ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr,
):  # fmt: skip
    """Load a tile; return x, d, g and v."""
    ACC: tl.constexpr = mean.dtype
    x_tile, dy_tile = load(x, at, exists, ACC), load(dy, at, exists, ACC)
    d, g = backward_terms(x_tile, dy_tile, mean, scale, shift, slope, ACTIVATION, ACT_NORM)
    if ddx is None:
        v = tl.zeros_like(x_tile)
    else:
        v = load(ddx, at, exists, ACC)
        if ACT_NORM:
            v = gate(v, x_tile, slope, ACTIVATION)
    return x_tile, d, g, v


@triton.jit
def factors(
    sum_v, sum_g, sum_vd, sum_gd, sum_vg, ddweight, ddbias, rstd, scale, c, C, M,
    TRAINING: tl.constexpr,
):  # fmt: skip
    """Return the share of d_weight, and what v, g and d are multiplied by in d_g and d_u.

    ``d_g = v * scale + d * dg_d + dg_1`` and ``d_u = g * dg_d + v * du_v + d * du_d + du_1``.
    """
    ACC: tl.constexpr = rstd.dtype
    p = load_vector(ddweight, c, C, tl.float64, 0.0)
    q = load_vector(ddbias, c, C, tl.float64, 0.0)
    r, w = rstd.to(tl.float64), scale.to(tl.float64)
    if TRAINING:
        per_value = 1.0 / M
        mean_v, mean_g = sum_v * per_value, sum_g * per_value
        mean_vh, mean_gh = r * sum_vd * per_value, r * sum_gd * per_value
        s = sum_vg - M * (mean_v * mean_g + mean_vh * mean_gh)
        of_g, of_v = p - w * mean_vh, w * mean_gh  # e = g * of_g - v * of_v
        mean_e, mean_eh = mean_g * of_g - mean_v * of_v, mean_gh * of_g - mean_vh * of_v
        du_v = (-r * of_v).to(ACC)
        du_d = (-r * r * (mean_eh + w * s * per_value)).to(ACC)
        dg_1 = (q - w * mean_v).to(ACC)
        return r * s, (r * of_g).to(ACC), dg_1, du_v, du_d, (-r * mean_e).to(ACC)
    else:  # the statistics are constants: their terms vanish
        zero = tl.zeros_like(rstd)
        return r * sum_vg, (r * p).to(ACC), q.to(ACC), zero, zero, zero


@triton.jit
def store_tile(
    d_dy, d_x, at, exists, x, d, g, v, scale, shift, dg_d, dg_1, du_v, du_d, du_1, slope,
    TRAINING: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr,
):  # fmt: skip
    """Store the gradients of dy and x of a tile."""
    d_g = v * scale[None, :] + (d * dg_d[None, :] + dg_1[None, :])
    d_u = g * dg_d[None, :]
    if TRAINING:
        d_u += v * du_v[None, :] + (d * du_d[None, :] + du_1[None, :])
    if ACT_NORM:
        d_u = gate(d_u, x, slope, ACTIVATION)
    else:
        d_g = gate(d_g, affine(d, scale, shift), slope, ACTIVATION)
    tl.store(d_dy + at, d_g, mask=exists)
    tl.store(d_x + at, d_u, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def double_backward_on_chip(
    ddx, ddweight, ddbias, dy, x, stats, d_dy, d_x, d_weight, N, C, splits, slope: tl.float64,
    TRAINING: tl.constexpr,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: all results of BLOCK_C channels; each input is read once, chunk after chunk."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    c = channels(tl.program_id(0), BLOCK_C, INDEX)
    m = tl.arange(0, BLOCK_M).to(INDEX)
    exists = (m < N * P)[:, None] & (c < C)[None, :]
    M, chunk_size = scalar(N * P, tl.float64), N * P * C
    slope = scalar(slope, ACC)
    of_weight = tl.zeros((BLOCK_C,), tl.float64)
    for split in range(splits):
        at = split * chunk_size + offsets(m, c, C, P)
        mean, rstd, scale, shift = load_stats(stats, split, c, C)
        x_tile, d, g, v = load_terms(
            ddx, dy, x, at, exists, mean, scale, shift, slope, ACTIVATION, ACT_NORM
        )
        share, dg_d, dg_1, du_v, du_d, du_1 = factors(
            total(v, P), total(g, P), total(v * d, P), total(g * d, P), total(v * g, P),
            ddweight, ddbias, rstd, scale, c, C, M, TRAINING,
        )  # fmt: skip
        of_weight += share
        store_tile(
            d_dy, d_x, at, exists, x_tile, d, g, v, scale, shift, dg_d, dg_1, du_v, du_d, du_1,
            slope, TRAINING, ACTIVATION, ACT_NORM,
        )  # fmt: skip
    tl.store(d_weight + c, of_weight, mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def double_backward_partial(
    ddx, dy, x, stats, partial, N, C, splits, parts, tiles, slope: tl.float64,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: the five sums of BLOCK_C channels in one part of a chunk."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    block, split, part = tl.program_id(0) // splits, tl.program_id(0) % splits, tl.program_id(1)
    c = channels(block, BLOCK_C, INDEX)
    base = split * N * P * C
    first = part.to(INDEX) * tiles * BLOCK_M
    slope = scalar(slope, ACC)
    mean, rstd, scale, shift = load_stats(stats, split, c, C)
    sums_v = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sums_g = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sums_vd = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sums_gd = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sums_vg = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for i in range(tiles):
        m = first + i * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = (m < N * P)[:, None] & (c < C)[None, :]
        at = base + offsets(m, c, C, P)
        x_tile, d, g, v = load_terms(
            ddx, dy, x, at, exists, mean, scale, shift, slope, ACTIVATION, ACT_NORM
        )
        sums_v += v
        sums_g += g
        sums_vd += v * d
        sums_gd += g * d
        sums_vg += v * g
    out = partial + (split * parts + part) * 5 * C + c
    tl.store(out, total(sums_v, P), mask=c < C)
    tl.store(out + C, total(sums_g, P), mask=c < C)
    tl.store(out + 2 * C, total(sums_vd, P), mask=c < C)
    tl.store(out + 3 * C, total(sums_gd, P), mask=c < C)
    tl.store(out + 4 * C, total(sums_vg, P), mask=c < C)


@triton.jit
def factors_of(
    partial, split, ddweight, ddbias, rstd, scale, c, C, parts, M,
    TRAINING: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Return ``factors`` from the sums of a chunk's parts."""
    return factors(
        summed(partial, split, 0, c, C, parts, 5, BLOCK_S),
        summed(partial, split, 1, c, C, parts, 5, BLOCK_S),
        summed(partial, split, 2, c, C, parts, 5, BLOCK_S),
        summed(partial, split, 3, c, C, parts, 5, BLOCK_S),
        summed(partial, split, 4, c, C, parts, 5, BLOCK_S),
        ddweight, ddbias, rstd, scale, c, C, M, TRAINING,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def double_backward_apply(
    ddx, ddweight, ddbias, dy, x, stats, d_dy, d_x, d_weight, partial,
    N, C, splits, parts, tiles, slope: tl.float64, TRAINING: tl.constexpr,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: gradients of dy and x of BLOCK_C channels in one part of a chunk; backwards."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block, split, part = program // splits, program % splits, parts - 1 - tl.program_id(1)
    c = channels(block, BLOCK_C, INDEX)
    M = scalar(N * P, tl.float64)
    slope = scalar(slope, ACC)
    if (split == 0) & (part == 0):
        of_weight = tl.zeros((BLOCK_C,), tl.float64)
        for k in range(splits):
            mean, rstd, scale, shift = load_stats(stats, k, c, C)
            share, dg_d, dg_1, du_v, du_d, du_1 = factors_of(
                partial, k, ddweight, ddbias, rstd, scale, c, C, parts, M, TRAINING, BLOCK_S
            )
            of_weight += share
        tl.store(d_weight + c, of_weight, mask=c < C)
    mean, rstd, scale, shift = load_stats(stats, split, c, C)
    share, dg_d, dg_1, du_v, du_d, du_1 = factors_of(
        partial, split, ddweight, ddbias, rstd, scale, c, C, parts, M, TRAINING, BLOCK_S
    )
    base = split * N * P * C
    first = part.to(INDEX) * tiles * BLOCK_M
    for i in range(tiles):
        m = first + (tiles - 1 - i) * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = (m < N * P)[:, None] & (c < C)[None, :]
        at = base + offsets(m, c, C, P)
        x_tile, d, g, v = load_terms(
            ddx, dy, x, at, exists, mean, scale, shift, slope, ACTIVATION, ACT_NORM
        )
        store_tile(
            d_dy, d_x, at, exists, x_tile, d, g, v, scale, shift, dg_d, dg_1, du_v, du_d, du_1,
            slope, TRAINING, ACTIVATION, ACT_NORM,
        )  # fmt: skip
