"""The forward Triton kernels of ``batch_norm_act``, and what they share with the backward ones.

A chunk of the batch has N images of P positions and C channels, and M = N * P values per channel.
Its value m of channel c lies at ``(m // P) * P * C + c * P + m % P``; if channels are last, or
there is one position, N counts rows and P is 1. Kernels work on tiles (BLOCK_M, BLOCK_C); they
convert N to INDEX first, since M may be 2^31 and more.

Arithmetic on tiles is in ACC, the dtype of ``stats``: float32, or float64 for float64. Values of a
whole channel are computed in double, as on the CPU.
"""

import triton
import triton.language as tl

from ganfast.ops.triton_math import scalar

SIZES = ["N", "parts", "tiles"]
"""Arguments that follow from the batch size, so that a smaller last batch compiles nothing new."""


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """Compute a(z)."""
    if ACTIVATION == "relu":
        return tl.where(z < 0, 0.0, z)  # keeps NaN, as torch does
    elif ACTIVATION == "leaky_relu":
        return tl.where(z > 0, z, z * slope)
    elif ACTIVATION is None:
        return z
    else:
        tl.static_assert(False, "activate lacks this activation")


@triton.jit
def gate(dy, z, slope, ACTIVATION: tl.constexpr):
    """Compute dy * a'(z); at exactly 0, and at NaN, what torch's backward does."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        return tl.where(z > 0, dy, dy * slope)
    elif ACTIVATION is None:
        return dy
    else:
        tl.static_assert(False, "gate lacks this activation")


@triton.jit
def channels(block, BLOCK_C: tl.constexpr, INDEX: tl.constexpr):
    """Return the indices of one block's channels."""
    return block.to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def offsets(m, c, C, P: tl.constexpr):
    """Return where values m of channels c lie in their chunk, a tile (m, c)."""
    if P == 1:
        return m[:, None] * C + c[None, :]
    else:
        return ((m // P) * P * C + m % P)[:, None] + (c * P)[None, :]


@triton.jit
def load(pointer, at, exists, ACC: tl.constexpr):
    """Load a tile, with 0 outside the tensor."""
    return tl.load(pointer + at, mask=exists, other=0.0).to(ACC)


@triton.jit
def load_last(pointer, at, exists, ACC: tl.constexpr):
    """Load a tile for the last time."""
    return tl.load(pointer + at, mask=exists, other=0.0, eviction_policy="evict_first").to(ACC)


@triton.jit
def load_vector(pointer, c, C, ACC: tl.constexpr, OTHERWISE: tl.constexpr):
    """Load values of channels c from a vector that may be None."""
    if pointer is None:
        return tl.full(c.shape, OTHERWISE, ACC)
    else:
        values = tl.load(pointer + c, mask=c < C, other=0.0)
        if values.dtype != tl.float64:
            values = values.to(tl.float32)  # between bfloat16 and double there is no conversion
        return values.to(ACC)


@triton.jit
def moments(u, exists, M):
    """Return the mean and the squared deviations of a tile's columns, whose missing values are 0.

    Both are corrected by what rounding the mean left over.
    """
    mean = (tl.sum(u, axis=0).to(tl.float64) / M).to(u.dtype)
    d = tl.where(exists, u - mean[None, :], 0.0)
    rest = tl.sum(d, axis=0).to(tl.float64)
    squares = tl.sum(d * d, axis=0).to(tl.float64) - rest * rest / M
    # With an infinite value, as torch: the mean is infinite and its deviations are NaN.
    mean = tl.where(rest == rest, mean + rest / M, mean)
    return mean, tl.where(squares < 0, 0.0, squares)


@triton.jit
def normalisation(mean, var, weight, bias, c, C, eps, ACC: tl.constexpr):
    """Return the rows of ``stats`` of channels c: mean, rstd, scale and shift."""
    rstd = 1.0 / tl.sqrt(var + eps)
    scale = load_vector(weight, c, C, tl.float64, 1.0) * rstd
    rounded = mean.to(ACC)
    # What rounding the mean leaves over; nothing if the mean is not finite.
    rest = tl.where(mean - mean == 0, mean - rounded.to(tl.float64), 0.0)
    shift = load_vector(bias, c, C, tl.float64, 0.0) - rest * scale
    return rounded, rstd.to(ACC), scale.to(ACC), shift.to(ACC)


@triton.jit
def store_stats(stats, c, C, mean, rstd, scale, shift):
    """Store the four rows of one chunk's stats."""
    tl.store(stats + c, mean, mask=c < C)
    tl.store(stats + C + c, rstd, mask=c < C)
    tl.store(stats + 2 * C + c, scale, mask=c < C)
    tl.store(stats + 3 * C + c, shift, mask=c < C)


@triton.jit
def affine(d, scale, shift):
    """Compute z of deviations from the mean, rounded once: backward repeats it for its mask."""
    return tl.fma(d, scale[None, :], shift[None, :])


@triton.jit
def normalise(x, mean, scale, shift, slope, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr):
    """Compute y of a tile."""
    if ACT_NORM:
        return affine(activate(x, slope, ACTIVATION) - mean[None, :], scale, shift)
    else:
        return activate(affine(x - mean[None, :], scale, shift), slope, ACTIVATION)


@triton.jit
def follow(running, batch, c, C, step):
    """Update a running statistic with a batch's; in memory it is rounded to its own dtype."""
    if running is not None:
        new = (1.0 - step) * load_vector(running, c, C, tl.float64, 0.0) + step * batch
        if running.dtype.element_ty != tl.float64:
            new = new.to(tl.float32)
        tl.store(running + c, new.to(running.dtype.element_ty), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def train_on_chip(
    x, y, weight, bias, running_mean, running_var, num_batches_tracked, stats,
    N, C, splits, momentum: tl.float64, eps: tl.float64, slope: tl.float64,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: all values of BLOCK_C channels, read once, chunk after chunk of the batch."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    c = channels(tl.program_id(0), BLOCK_C, INDEX)
    m = tl.arange(0, BLOCK_M).to(INDEX)
    exists = (m < N * P)[:, None] & (c < C)[None, :]
    at = offsets(m, c, C, P)
    M, chunk_size = scalar(N * P, tl.float64), N * P * C
    slope = scalar(slope, ACC)
    for split in range(splits):
        x_tile = load(x, split * chunk_size + at, exists, ACC)
        u = activate(x_tile, slope, ACTIVATION) if ACT_NORM else x_tile
        mean, squares = moments(u, exists, M)
        rounded, rstd, scale, shift = normalisation(mean, squares / M, weight, bias, c, C, eps, ACC)
        y_tile = normalise(x_tile, rounded, scale, shift, slope, ACTIVATION, ACT_NORM)
        tl.store(y + (split * chunk_size + at), y_tile, mask=exists)
        store_stats(stats + split * 4 * C, c, C, rounded, rstd, scale, shift)
        follow(running_mean, mean, c, C, momentum)
        follow(running_var, squares / (M - 1), c, C, momentum)
    if num_batches_tracked is not None:
        if tl.program_id(0) == 0:
            tl.store(num_batches_tracked, tl.load(num_batches_tracked) + splits)


@triton.jit(do_not_specialize=SIZES)
def train_partial(
    x, num_batches_tracked, partial, N, C, splits, parts, tiles, slope: tl.float64,
    ACC: tl.constexpr,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: mean and squared deviations of BLOCK_C channels in one part of a chunk.

    Each lane sums about the first tile's mean. If that lies far from the others', it adds to the
    part's variance too: cancellation loses a factor of at most the number of tiles.
    """
    N = scalar(N, INDEX)
    block, split, part = tl.program_id(0) // splits, tl.program_id(0) % splits, tl.program_id(1)
    c = channels(block, BLOCK_C, INDEX)
    base = split * N * P * C
    first = part.to(INDEX) * tiles * BLOCK_M
    M = N * P
    slope = scalar(slope, ACC)
    exists = (first + tl.arange(0, BLOCK_M) < M)[:, None] & (c < C)[None, :]
    u = load(x, base + offsets(first + tl.arange(0, BLOCK_M), c, C, P), exists, ACC)
    u = activate(u, slope, ACTIVATION) if ACT_NORM else u
    center = tl.sum(u, axis=0) / scalar(tl.minimum(M - first, BLOCK_M), ACC)
    center = tl.where(center - center == 0, center, 0.0)  # else infinite sums become NaN
    sums = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    squares = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for i in range(tiles):
        m = first + i * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = (m < M)[:, None] & (c < C)[None, :]
        u = load(x, base + offsets(m, c, C, P), exists, ACC)
        u = activate(u, slope, ACTIVATION) if ACT_NORM else u
        d = tl.where(exists, u - center[None, :], 0.0)
        sums += d
        squares += d * d
    count = scalar(tl.minimum(M - first, tiles * BLOCK_M), tl.float64)
    total = tl.sum(sums, axis=0).to(tl.float64)
    squared = tl.sum(squares, axis=0).to(tl.float64) - total * total / count
    out = partial + (split * parts + part) * 2 * C + c
    tl.store(out, center + total / count, mask=c < C)
    tl.store(out + C, tl.where(squared < 0, 0.0, squared), mask=c < C)
    if num_batches_tracked is not None:
        if (tl.program_id(0) == 0) & (part == 0):
            tl.store(num_batches_tracked, tl.load(num_batches_tracked) + splits)


@triton.jit
def merged(
    partial, split, c, C, M, parts, tiles,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Merge the parts of a chunk (Chan, Golub and LeVeque 1979), in a fixed order."""
    part = tl.arange(0, BLOCK_S)
    exists = (part < parts)[:, None] & (c < C)[None, :]
    at = (split * parts + part)[:, None] * 2 * C + c[None, :]
    count = tl.minimum(M - part.to(M.dtype) * tiles * BLOCK_M, tiles * BLOCK_M)
    weights = tl.where(part < parts, count, 0).to(tl.float64)[:, None]
    means, squares = (
        load(partial, at, exists, tl.float64),
        load(partial, at + C, exists, tl.float64),
    )
    mean = tl.sum(means * weights, axis=0) / scalar(M, tl.float64)
    d = means - mean[None, :]
    return mean, tl.sum(squares + d * d * weights, axis=0)


@triton.jit(do_not_specialize=SIZES)
def train_apply(
    x, y, weight, bias, running_mean, running_var, num_batches_tracked, stats, partial,
    N, C, splits, parts, tiles, momentum: tl.float64, eps: tl.float64, slope: tl.float64,
    CUMULATIVE: tl.constexpr,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: y of BLOCK_C channels in one part of a chunk, last part first."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block, split, part = program // splits, program % splits, parts - 1 - tl.program_id(1)
    c = channels(block, BLOCK_C, INDEX)
    M = N * P
    mean, squares = merged(partial, split, c, C, M, parts, tiles, BLOCK_M, BLOCK_S)
    var = squares / scalar(M, tl.float64)
    rounded, rstd, scale, shift = normalisation(mean, var, weight, bias, c, C, eps, ACC)
    if part == 0:
        store_stats(stats + split * 4 * C, c, C, rounded, rstd, scale, shift)
        if split == 0:
            for k in range(splits):
                mean, squares = merged(partial, k, c, C, M, parts, tiles, BLOCK_M, BLOCK_S)
                if CUMULATIVE:  # train_partial has counted these chunks already
                    count = tl.load(num_batches_tracked) - splits + k + 1
                    step = 1.0 / count.to(tl.float64)
                else:
                    step = scalar(momentum, tl.float64)
                follow(running_mean, mean, c, C, step)
                follow(running_var, squares / scalar(M - 1, tl.float64), c, C, step)
    normalise_part(
        x, y, rounded, scale, shift, split, part, c, N, C, tiles, slope,
        P, ACTIVATION, ACT_NORM, INDEX, BLOCK_M,
    )  # fmt: skip


@triton.jit
def normalise_part(
    x, y, mean, scale, shift, split, part, c, N, C, tiles, slope,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write y of channels c in one part of a chunk, last tile first."""
    ACC: tl.constexpr = scale.dtype
    base = split * N * P * C
    first = part.to(INDEX) * tiles * BLOCK_M
    slope = scalar(slope, ACC)
    for i in range(tiles):
        m = first + (tiles - 1 - i) * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = (m < N * P)[:, None] & (c < C)[None, :]
        at = base + offsets(m, c, C, P)
        x_tile = load_last(x, at, exists, ACC)
        y_tile = normalise(x_tile, mean, scale, shift, slope, ACTIVATION, ACT_NORM)
        tl.store(y + at, y_tile, mask=exists, eviction_policy="evict_first")


@triton.jit(do_not_specialize=SIZES)
def evaluate(
    x, y, weight, bias, running_mean, running_var, stats, N, C, tiles,
    eps: tl.float64, slope: tl.float64,
    P: tl.constexpr, ACTIVATION: tl.constexpr, ACT_NORM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: y of BLOCK_C channels in one part of the batch, from running statistics."""
    N = scalar(N, INDEX)
    ACC: tl.constexpr = stats.dtype.element_ty
    c = channels(tl.program_id(0), BLOCK_C, INDEX)
    mean = load_vector(running_mean, c, C, tl.float64, 0.0)
    var = load_vector(running_var, c, C, tl.float64, 1.0)
    mean, rstd, scale, shift = normalisation(mean, var, weight, bias, c, C, eps, ACC)
    if tl.program_id(1) == 0:
        store_stats(stats, c, C, mean, rstd, scale, shift)
    normalise_part(
        x, y, mean, scale, shift, 0, tl.program_id(1), c, N, C, tiles, slope,
        P, ACTIVATION, ACT_NORM, INDEX, BLOCK_M,
    )  # fmt: skip
