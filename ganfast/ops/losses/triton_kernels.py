"""The Triton kernels of the losses.

The first functions, of one score, are csrc/common/loss_math.h again; gan.py has the formulas. x is
a score, t its target, p the weight of positive examples (logits only). A kernel's tensors all have
x's memory format. Arithmetic is in float32, or in float64 for float64.
"""

import triton
import triton.language as tl

from ganfast.ops.triton_math import (
    at_least,
    divide,
    exp_of_nonpositive,
    log1p_of_minus,
    log1p_of_unit,
    log_of,
    scalar,
)


@triton.jit
def sigmoid(x):
    """Compute 1 / (1 + exp(-x))."""
    e = exp_of_nonpositive(-tl.abs(x))
    larger = divide(tl.full(x.shape, 1.0, x.dtype), 1.0 + e)
    return tl.where(x < 0, e * larger, larger)


@triton.jit
def loss_of(x, t, p, FORM: tl.constexpr):
    """Compute the loss of x."""
    if FORM == "probabilities":
        log_x = at_least(log_of(x), -100.0)
        return (t - 1.0) * at_least(log1p_of_minus(x), -100.0) - t * log_x
    elif FORM == "logits":
        # Less than zero rather than min: a NaN is caught by the other term.
        log_sigmoid = tl.where(x < 0, x, 0.0) - log1p_of_unit(exp_of_nonpositive(-tl.abs(x)))
        return (1.0 - t) * x - ((p - 1.0) * t + 1.0) * log_sigmoid
    elif FORM == "squared":
        return (x - t) * (x - t)
    elif FORM == "hinge":
        z = 1.0 - t * x
        return tl.where(z < 0, 0.0, z)
    else:
        return -t * x


@triton.jit
def slope_of(x, t, p, FORM: tl.constexpr):
    """Compute the derivative of ``loss_of`` in x."""
    if FORM == "probabilities":  # the smallest denominator is a float for double too, as in torch
        return divide(x - t, at_least((1.0 - x) * x, 9.999999960041972e-13))
    elif FORM == "logits":
        return (p * t + (1.0 - t)) * sigmoid(x) - p * t
    elif FORM == "squared":
        return 2.0 * (x - t)
    elif FORM == "hinge":
        return tl.where(1.0 - t * x <= 0, 0.0, -t)  # at NaN as behind torch's ReLU
    else:
        return tl.zeros_like(x) - t


@triton.jit
def score_of(x, FORM: tl.constexpr):
    """Compute what a discriminator's score is reported as."""
    if FORM == "logits":
        return sigmoid(x)
    else:
        return x


@triton.jit
def load_or(pointer, i, exists, otherwise, ACC: tl.constexpr):
    """Load values i of a tensor, or return a number if there is no tensor."""
    if pointer is None:
        return scalar(otherwise, ACC)
    else:
        return tl.load(pointer + i, mask=exists, other=0.0).to(ACC)


@triton.jit
def weighted_loss(
    x, target, label, weight, pos_weight, i, exists, FORM: tl.constexpr, ACC: tl.constexpr
):
    """Compute the losses of scores i."""
    # Beyond the end stands 0.5, which has a loss of either form.
    u = tl.load(x + i, mask=exists, other=0.5).to(ACC)
    t = load_or(target, i, exists, label, ACC)
    y = loss_of(u, t, load_or(pos_weight, i, exists, 1.0, ACC), FORM)
    return y * load_or(weight, i, exists, 1.0, ACC)


@triton.jit
def bce_losses(
    x, target, label: tl.float64, weight, pos_weight, y, n,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the losses of BLOCK scores."""
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = i < n
    y_block = weighted_loss(x, target, label, weight, pos_weight, i, exists, FORM, ACC)
    tl.store(y + i, y_block, mask=exists)


@triton.jit
def bce_sums(
    x, target, label: tl.float64, weight, pos_weight, y, n, tiles, divisor, LAST: tl.constexpr,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the sum of the losses of some blocks; divided, if it is the LAST."""
    first = tl.program_id(0).to(INDEX) * tiles * BLOCK
    lanes = tl.zeros((BLOCK,), ACC)
    for k in range(tiles):
        i = first + k * BLOCK + tl.arange(0, BLOCK)
        exists = i < n
        y_block = weighted_loss(x, target, label, weight, pos_weight, i, exists, FORM, ACC)
        lanes += tl.where(exists, y_block, 0.0)
    # In double from here on, as on the CPU: few numbers, and a large loss drowns no small ones.
    total = tl.sum(lanes.to(tl.float64), axis=0)
    if divisor is not None:
        total = total / scalar(divisor, tl.float64)
    if LAST:
        total = total.to(ACC)
    tl.store(y + tl.program_id(0), total)


@triton.jit
def bce_merge(partial, y, parts, divisor, ACC: tl.constexpr, BLOCK_S: tl.constexpr):
    """One program: the sum of all parts, in a fixed order."""
    part = tl.arange(0, BLOCK_S)
    total = tl.sum(tl.load(partial + part, mask=part < parts, other=0.0), axis=0)
    if divisor is not None:
        total = total / scalar(divisor, tl.float64)
    tl.store(y, total.to(ACC))


@triton.jit
def bce_gradients(
    dy, x, target, label: tl.float64, weight, pos_weight, dx, n, divisor,
    EACH: tl.constexpr,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: dx of BLOCK scores. EACH has its dy, or one dy belongs to all."""
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = i < n
    u = tl.load(x + i, mask=exists, other=0.5).to(ACC)
    t = load_or(target, i, exists, label, ACC)
    slope = slope_of(u, t, load_or(pos_weight, i, exists, 1.0, ACC), FORM)
    if EACH:
        incoming = tl.load(dy + i, mask=exists, other=0.0).to(ACC)
    else:
        incoming = tl.load(dy).to(ACC)
        if divisor is not None:
            incoming = divide(incoming, scalar(divisor, ACC))
    dx_block = slope * (incoming * load_or(weight, i, exists, 1.0, ACC))
    tl.store(dx + i, dx_block, mask=exists)


@triton.jit
def sums_of(
    x, n, label, part, tiles,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the losses and the scores of one part of n."""
    label = scalar(label, ACC)
    losses = tl.zeros((BLOCK,), ACC)
    scores = tl.zeros((BLOCK,), ACC)
    first = scalar(part, INDEX) * tiles * BLOCK
    for k in range(tiles):
        i = first + k * BLOCK + tl.arange(0, BLOCK)
        u = tl.load(x + i, mask=i < n, other=0.5).to(ACC)
        losses += tl.where(i < n, loss_of(u, label, 1.0, FORM), 0.0)
        scores += tl.where(i < n, score_of(u, FORM), 0.0)
    # In double from here on, as on the CPU: few numbers, and a large loss drowns no small ones.
    return tl.sum(losses.to(tl.float64), axis=0), tl.sum(scores.to(tl.float64), axis=0)


@triton.jit
def store_means(
    loss, real_score, fake_score, real_loss, real_scores, n_real, fake_loss, fake_scores, n_fake,
    ACC: tl.constexpr, JOINT: tl.constexpr,
):  # fmt: skip
    """Divide the sums by their counts and store the results."""
    n_real = scalar(n_real, tl.float64)
    total = real_loss / n_real
    if JOINT:
        n_fake = scalar(n_fake, tl.float64)
        total += fake_loss / n_fake
        tl.store(real_score, (real_scores / n_real).to(ACC))
        tl.store(fake_score, (fake_scores / n_fake).to(ACC))
    tl.store(loss, total.to(ACC))


@triton.jit
def gan_loss(
    real, fake, loss, real_score, fake_score, n_real, n_fake, fake_begin, real_tiles, fake_tiles,
    real_label: tl.float64, fake_label: tl.float64, JOINT: tl.constexpr,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the loss and both mean scores."""
    real_loss, real_scores = sums_of(
        real, n_real, real_label, 0, real_tiles, FORM, ACC, INDEX, BLOCK
    )
    fake_loss, fake_scores = real_loss, real_scores
    if JOINT:
        fake_loss, fake_scores = sums_of(
            fake + fake_begin, n_fake, fake_label, 0, fake_tiles, FORM, ACC, INDEX, BLOCK
        )
    store_means(
        loss, real_score, fake_score, real_loss, real_scores, n_real, fake_loss, fake_scores,
        n_fake, ACC, JOINT,
    )  # fmt: skip


@triton.jit
def gan_partial(
    real, fake, partial, n_real, n_fake, fake_begin, real_tiles, fake_tiles,
    real_label: tl.float64, fake_label: tl.float64, JOINT: tl.constexpr,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: sums of the losses and the scores in one part of the real or the fake ones."""
    part, of_fake = tl.program_id(0), tl.program_id(1)
    out = partial + (of_fake * tl.num_programs(0) + part) * 2
    if of_fake == 0:
        losses, scores = sums_of(
            real, n_real, real_label, part, real_tiles, FORM, ACC, INDEX, BLOCK
        )
        tl.store(out, losses)
        tl.store(out + 1, scores)
    else:
        losses, scores = sums_of(
            fake + fake_begin, n_fake, fake_label, part, fake_tiles, FORM, ACC, INDEX, BLOCK
        )
        tl.store(out, losses)
        tl.store(out + 1, scores)


@triton.jit
def merged(partial, begin, parts, BLOCK_S: tl.constexpr):
    """Add up the parts of the real or the fake scores, in a fixed order."""
    part = tl.arange(0, BLOCK_S)
    at = partial + (begin + part) * 2
    losses = tl.sum(tl.load(at, mask=part < parts, other=0.0), axis=0)
    return losses, tl.sum(tl.load(at + 1, mask=part < parts, other=0.0), axis=0)


@triton.jit
def gan_merge(
    partial, loss, real_score, fake_score, n_real, n_fake, parts,
    JOINT: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: the loss and both mean scores, from the sums of all parts."""
    real_loss, real_scores = merged(partial, 0, parts, BLOCK_S)
    fake_loss, fake_scores = real_loss, real_scores
    if JOINT:
        fake_loss, fake_scores = merged(partial, parts, parts, BLOCK_S)
    store_means(
        loss, real_score, fake_score, real_loss, real_scores, n_real, fake_loss, fake_scores,
        n_fake, ACC, JOINT,
    )  # fmt: skip


@triton.jit
def store_gradient(
    dloss, x, dx, n, label, block,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store dx of one block of n scores."""
    i = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(x + i, mask=i < n, other=0.5).to(ACC)
    slope = slope_of(u, scalar(label, ACC), 1.0, FORM)
    incoming = divide(tl.load(dloss).to(ACC), scalar(n, ACC))
    tl.store(dx + i, slope * incoming, mask=i < n)


@triton.jit
def gan_gradients(
    dloss, real, fake, dreal, dfake, n_real, n_fake, fake_begin,
    real_label: tl.float64, fake_label: tl.float64,
    FORM: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of one block of the real and of the fake scores."""
    block = tl.program_id(0)
    if dreal is not None:
        if block * BLOCK < n_real:
            store_gradient(dloss, real, dreal, n_real, real_label, block, FORM, ACC, INDEX, BLOCK)
    if dfake is not None:
        if block * BLOCK < n_fake:
            store_gradient(
                dloss, fake + fake_begin, dfake + fake_begin, n_fake, fake_label, block,
                FORM, ACC, INDEX, BLOCK,
            )  # fmt: skip
