"""The host code of the losses' Triton kernels. Arguments and results: those of reference.py.

As torch on a GPU, and unlike the kernels on the CPU, these do not raise if a probability is outside
[0, 1]: that would wait for the device. The loss is NaN there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.ops.losses import triton_kernels as kernels
from ganfast.ops.tensors import accumulation_dtype
from ganfast.ops.triton_launch import launch

SCORES_PER_BLOCK = 1024
BLOCKS_IN_ONE_PROGRAM = 8
MOST_PARTS = 256


def binary_cross_entropy(x: Tensor, *rest: Any) -> Tensor:
    """Compute the loss: in one kernel, or for the sum of many scores in two."""
    operands, constants, reduction = _prepared(x, *rest)
    x, n = operands[0], x.numel()
    if reduction == "none":
        y = torch.empty_like(x)
        if n:
            blocks = triton.cdiv(n, constants["BLOCK"])
            launch(kernels.bce_losses, (blocks,), x, *operands, y, n, **constants)
        return y
    y = x.new_empty(())
    divisor = n if reduction == "mean" else None
    parts, tiles = _parts(n)
    if parts == 1:
        launch(kernels.bce_sums, (1,), x, *operands, y, n, tiles, divisor, LAST=True, **constants)
        return y
    partial = x.new_empty(parts, dtype=torch.float64)
    launch(
        kernels.bce_sums, (parts,), x, *operands, partial, n, tiles, None, LAST=False, **constants
    )
    launch(
        kernels.bce_merge, (1,), x, partial, y, parts, divisor,
        ACC=constants["ACC"], BLOCK_S=triton.next_power_of_2(parts),
    )  # fmt: skip
    return y


def binary_cross_entropy_backward(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """Compute dx in one kernel; a single dy is read on its device."""
    operands, constants, reduction = _prepared(x, *rest)
    x, n = operands[0], x.numel()
    dx = torch.empty_like(x)
    each = reduction == "none"
    if each:
        dy = dy.expand(x.shape).contiguous(memory_format=suggest_memory_format(x))
    if n:
        launch(
            kernels.bce_gradients, (triton.cdiv(n, constants["BLOCK"]),), x,
            dy, *operands, dx, n, n if reduction == "mean" else None, EACH=each, **constants,
        )  # fmt: skip
    return dx


def gan_loss(real: Tensor, fake: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss and the mean scores: in one kernel, or for many scores in two."""
    form, real_label, fake_label, splits = rest
    scores = _scores(real, fake, splits)
    constants = _constants(scores.real, form)
    wide = accumulation_dtype(real)
    loss = real.new_empty((), dtype=wide)
    shape = () if scores.joint else (0,)
    means = [real.new_empty(shape, dtype=wide) for _ in range(2)]
    parts, tiles = _parts(max(scores.n_real, scores.n_fake))
    counts = (scores.n_real, scores.n_fake)
    blocks = [min(tiles, triton.cdiv(n, constants["BLOCK"])) for n in counts]
    arguments = (*counts, scores.fake_begin, *blocks, real_label, fake_label)
    if parts == 1:
        launch(
            kernels.gan_loss, (1,), scores.real,
            scores.real, scores.fake, loss, *means, *arguments, JOINT=scores.joint, **constants,
        )  # fmt: skip
        return loss, means[0], means[1]
    partial = loss.new_empty((2, parts, 2), dtype=torch.float64)
    launch(
        kernels.gan_partial, (parts, 1 + scores.joint), scores.real,
        scores.real, scores.fake, partial, *arguments, JOINT=scores.joint, **constants,
    )  # fmt: skip
    launch(
        kernels.gan_merge, (1,), scores.real, partial, loss, *means, *counts, parts,
        JOINT=scores.joint, ACC=constants["ACC"], BLOCK_S=triton.next_power_of_2(parts),
    )  # fmt: skip
    return loss, means[0], means[1]


def gan_loss_backward(
    dloss: Tensor, real: Tensor, fake: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the scores that need one, in one kernel."""
    form, real_label, fake_label, splits, need_real, need_fake = rest
    scores = _scores(real, fake, splits)
    constants = _constants(scores.real, form)
    dreal = torch.empty_like(scores.real) if need_real else None
    dfake = torch.empty_like(scores.fake) if need_fake and fake is not None else None
    results = tuple(real.new_empty(0) if dx is None else dx for dx in (dreal, dfake))
    if splits == 2:
        dfake = dreal
    counts = [n for n, dx in zip(scores[2:4], (dreal, dfake), strict=True) if dx is not None]
    blocks = triton.cdiv(max(counts, default=0), constants["BLOCK"])
    if blocks:
        launch(
            kernels.gan_gradients, (blocks,), scores.real,
            dloss, scores.real, scores.fake, dreal, dfake, scores.n_real, scores.n_fake,
            scores.fake_begin, real_label, fake_label, **constants,
        )  # fmt: skip
    return results[0], results[1]


def _prepared(
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> tuple[tuple[Any, ...], dict[str, Any], str]:
    """Return the operands in x's memory format, the kernels' constants and the reduction."""
    memory_format = suggest_memory_format(x)
    ordered = [
        None if tensor is None else tensor.contiguous(memory_format=memory_format)
        for tensor in (target, weight, pos_weight)
    ]
    x = x.contiguous(memory_format=memory_format)
    constants = _constants(x, "logits" if from_logits else "probabilities")
    return (x, ordered[0], label, *ordered[1:]), constants, reduction


class _Scores(NamedTuple):
    """Scores in memory: ``n_real`` numbers of ``real``, and ``n_fake`` of ``fake`` from a place on.

    ``joint``: whether there are generated scores, so that the loss is a discriminator's.
    """

    real: Tensor
    fake: Tensor
    n_real: int
    n_fake: int
    fake_begin: int
    joint: bool


def _scores(real: Tensor, fake: Tensor | None, splits: int) -> _Scores:
    real = real.contiguous(memory_format=suggest_memory_format(real))
    n = real.numel() // splits
    if splits == 2:
        return _Scores(real, real, n, n, n, True)
    if fake is None:
        return _Scores(real, real, n, 0, 0, False)
    fake = fake.contiguous(memory_format=suggest_memory_format(fake))
    return _Scores(real, fake, n, fake.numel(), 0, True)


def _parts(n: int) -> tuple[int, int]:
    """Return how many programs add up n losses, and how many blocks each of them takes."""
    blocks = -(-n // SCORES_PER_BLOCK)
    if blocks <= BLOCKS_IN_ONE_PROGRAM:
        return 1, blocks
    tiles = max(BLOCKS_IN_ONE_PROGRAM // 2, -(-blocks // MOST_PARTS))
    return -(-blocks // tiles), tiles


def _constants(x: Tensor, form: str) -> dict[str, Any]:
    """Return the constants of a kernel for a form of the loss."""
    return {
        "FORM": form,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "INDEX": tl.int32 if x.numel() < 2**31 else tl.int64,
        "BLOCK": SCORES_PER_BLOCK,
    }
