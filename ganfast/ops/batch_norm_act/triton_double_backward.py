"""The double backward Triton kernels of ``batch_norm_act``; see triton_backward.py.

v is the gradient of du. The derivation is in reference.py; here h = d * rstd, and the means of e
and e h follow from five sums: of v, g, v d, g d and v g.
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
def factors(sums, ddweight, ddbias, rstd, scale, c, C, M, TRAINING: tl.constexpr):
    """Return the share of d_weight, and the factors k of a tile's terms.

    ``d_g = v * scale + d * k_d + k_1`` and ``d_u = g * k_d + (v * k_v + d * k_dd + k_11)``. In
    evaluation the statistics are constants, and only the derivatives of scale and shift are left.
    """
    ACC: tl.constexpr = rstd.dtype
    sum_v, sum_g, sum_vd, sum_gd, sum_vg = sums
    p = load_vector(ddweight, c, C, tl.float64, 0.0)
    q = load_vector(ddbias, c, C, tl.float64, 0.0)
    r, w = rstd.to(tl.float64), scale.to(tl.float64)
    # e = g * e_g - v * e_v
    s, e_g, e_v = sum_vg, p, tl.zeros_like(p)
    mean_v, mean_e, h_factor = e_v, e_v, e_v
    if TRAINING:
        per_value = 1.0 / M
        mean_v, mean_g = sum_v * per_value, sum_g * per_value
        mean_vh, mean_gh = r * sum_vd * per_value, r * sum_gd * per_value
        s = sum_vg - M * (mean_v * mean_g + mean_vh * mean_gh)
        e_g, e_v = p - w * mean_vh, w * mean_gh
        mean_e, mean_eh = mean_g * e_g - mean_v * e_v, mean_gh * e_g - mean_vh * e_v
        h_factor = mean_eh + w * s * per_value
    k_d, k_1 = (r * e_g).to(ACC), (q - w * mean_v).to(ACC)
    return r * s, (k_d, k_1, (-r * e_v).to(ACC), (-r * r * h_factor).to(ACC), (-r * mean_e).to(ACC))


@triton.jit
def store_tile(
    d_dy, d_x, at, exists, x, d, g, v, scale, shift, k, slope,
    TRAINING: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr,
):  # fmt: skip
    """Store the gradients of dy and x of a tile."""
    k_d, k_1, k_v, k_dd, k_11 = k
    d_g = v * scale[None, :] + (d * k_d[None, :] + k_1[None, :])
    d_u = g * k_d[None, :]
    if TRAINING:
        d_u += v * k_v[None, :] + (d * k_dd[None, :] + k_11[None, :])
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
        sums = total(v, P), total(g, P), total(v * d, P), total(g * d, P), total(v * g, P)
        share, k = factors(sums, ddweight, ddbias, rstd, scale, c, C, M, TRAINING)
        of_weight += share
        store_tile(
            d_dy, d_x, at, exists, x_tile, d, g, v, scale, shift, k,
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
def summed_terms(partial, split, c, C, parts, BLOCK_S: tl.constexpr):
    """Add up the five sums of a chunk's parts."""
    sum_v = summed(partial, split, 0, c, C, parts, 5, BLOCK_S)
    sum_g = summed(partial, split, 1, c, C, parts, 5, BLOCK_S)
    sum_vd = summed(partial, split, 2, c, C, parts, 5, BLOCK_S)
    sum_gd = summed(partial, split, 3, c, C, parts, 5, BLOCK_S)
    return sum_v, sum_g, sum_vd, sum_gd, summed(partial, split, 4, c, C, parts, 5, BLOCK_S)


@triton.jit(do_not_specialize=SIZES)
def double_backward_apply(
    ddx, ddweight, ddbias, dy, x, stats, d_dy, d_x, d_weight, partial,
    N, C, splits, parts, tiles, slope: tl.float64, TRAINING: tl.constexpr,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: d_dy and d_x of BLOCK_C channels in one part of a chunk, last part first."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block, split, part = program // splits, program % splits, parts - 1 - tl.program_id(1)
    c = channels(block, BLOCK_C, INDEX)
    M = scalar(N * P, tl.float64)
    slope = scalar(slope, ACC)
    if (split == 0) & (part == 0):
        of_weight = tl.zeros((BLOCK_C,), tl.float64)
        for i in range(splits):
            mean, rstd, scale, shift = load_stats(stats, i, c, C)
            sums = summed_terms(partial, i, c, C, parts, BLOCK_S)
            of_weight += factors(sums, ddweight, ddbias, rstd, scale, c, C, M, TRAINING)[0]
        tl.store(d_weight + c, of_weight, mask=c < C)
    mean, rstd, scale, shift = load_stats(stats, split, c, C)
    sums = summed_terms(partial, split, c, C, parts, BLOCK_S)
    _, k = factors(sums, ddweight, ddbias, rstd, scale, c, C, M, TRAINING)
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
            d_dy, d_x, at, exists, x_tile, d, g, v, scale, shift, k,
            slope, TRAINING, ACTIVATION, ACT_NORM,
        )  # fmt: skip
