"""The Triton kernels of ``gan_loss``. Scores are n numbers side by side; fake may be empty.

Arithmetic is in float32, or in float64 for float64.
"""

import triton
import triton.language as tl

from ganfast.ops.triton_losses import loss_of, score_of, slope_of
from ganfast.ops.triton_math import divide, scalar


@triton.jit
def sums_of(
    x, n, label, part, tiles,
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the losses and the scores of one part of n."""
    label = scalar(label, ACC)
    losses = tl.zeros((BLOCK,), ACC)
    scores = tl.zeros((BLOCK,), ACC)
    first = scalar(part, INDEX) * tiles * BLOCK
    for k in range(tiles):
        i = first + k * BLOCK + tl.arange(0, BLOCK)
        u = tl.load(x + i, mask=i < n, other=0.5).to(ACC)
        losses += tl.where(i < n, loss_of(u, label, 1.0, KIND), 0.0)
        scores += tl.where(i < n, score_of(u, KIND), 0.0)
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
def forward(
    real, fake, loss, real_score, fake_score, n_real, n_fake, fake_begin, real_tiles, fake_tiles,
    real_label: tl.float64, fake_label: tl.float64, JOINT: tl.constexpr,
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the loss and both mean scores."""
    real_loss, real_scores = sums_of(
        real, n_real, real_label, 0, real_tiles, KIND, ACC, INDEX, BLOCK
    )
    fake_loss, fake_scores = real_loss, real_scores
    if JOINT:
        fake_loss, fake_scores = sums_of(
            fake + fake_begin, n_fake, fake_label, 0, fake_tiles, KIND, ACC, INDEX, BLOCK
        )
    store_means(
        loss, real_score, fake_score, real_loss, real_scores, n_real, fake_loss, fake_scores,
        n_fake, ACC, JOINT,
    )  # fmt: skip


@triton.jit
def forward_partial(
    real, fake, partial, n_real, n_fake, fake_begin, real_tiles, fake_tiles,
    real_label: tl.float64, fake_label: tl.float64, JOINT: tl.constexpr,
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: sums of the losses and the scores in one part of the real or the fake ones."""
    part, of_fake = tl.program_id(0), tl.program_id(1)
    out = partial + (of_fake * tl.num_programs(0) + part) * 2
    if of_fake == 0:
        losses, scores = sums_of(
            real, n_real, real_label, part, real_tiles, KIND, ACC, INDEX, BLOCK
        )
        tl.store(out, losses)
        tl.store(out + 1, scores)
    else:
        losses, scores = sums_of(
            fake + fake_begin, n_fake, fake_label, part, fake_tiles, KIND, ACC, INDEX, BLOCK
        )
        tl.store(out, losses)
        tl.store(out + 1, scores)


@triton.jit
def merged(partial, begin, parts, BLOCK_S: tl.constexpr):
    """Add the parts of the real or the fake scores, in an order that is always one."""
    part = tl.arange(0, BLOCK_S)
    at = partial + (begin + part) * 2
    losses = tl.sum(tl.load(at, mask=part < parts, other=0.0), axis=0)
    return losses, tl.sum(tl.load(at + 1, mask=part < parts, other=0.0), axis=0)


@triton.jit
def forward_merge(
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
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store dx of one block of n scores."""
    i = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(x + i, mask=i < n, other=0.5).to(ACC)
    slope = slope_of(u, scalar(label, ACC), 1.0, KIND)
    incoming = divide(tl.load(dloss).to(ACC), scalar(n, ACC))
    tl.store(dx + i, slope * incoming, mask=i < n)


@triton.jit
def backward(
    dloss, real, fake, dreal, dfake, n_real, n_fake, fake_begin,
    real_label: tl.float64, fake_label: tl.float64,
    KIND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of one block of the real and of the fake scores."""
    block = tl.program_id(0)
    if dreal is not None:
        if block * BLOCK < n_real:
            store_gradient(dloss, real, dreal, n_real, real_label, block, KIND, ACC, INDEX, BLOCK)
    if dfake is not None:
        if block * BLOCK < n_fake:
            store_gradient(
                dloss, fake + fake_begin, dfake + fake_begin, n_fake, fake_label, block,
                KIND, ACC, INDEX, BLOCK,
            )  # fmt: skip
