"""The Triton kernels of ``gan_loss`` on the host's side.

Arguments and results are those of the schemas in this folder's ``__init__``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.ops.gan_loss import triton_kernels as kernels
from ganfast.ops.triton_launch import launch
from ganfast.ops.triton_losses import score_constants, score_parts


class _Scores(NamedTuple):
    """The real scores are ``n_real`` numbers of ``real``, the others ``n_fake`` from a place on."""

    real: Tensor
    fake: Tensor
    n_real: int
    n_fake: int
    fake_begin: int
    joint: bool


def forward(
    real: Tensor,
    fake: Tensor | None,
    kind: str,
    real_label: float,
    fake_label: float,
    splits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss and the mean scores: in one kernel, or for many scores in two."""
    scores = _scores(real, fake, splits)
    constants = score_constants(scores.real, kind)
    wide = torch.float64 if real.dtype == torch.float64 else torch.float32
    loss = real.new_empty((), dtype=wide)
    shape = () if scores.joint else (0,)
    means = [real.new_empty(shape, dtype=wide) for _ in range(2)]
    parts, tiles = score_parts(max(scores.n_real, scores.n_fake))
    counts = (scores.n_real, scores.n_fake)
    blocks = [min(tiles, triton.cdiv(n, constants["BLOCK"])) for n in counts]
    arguments = (*counts, scores.fake_begin, *blocks, real_label, fake_label)
    if parts == 1:
        launch(
            kernels.forward, (1,), scores.real,
            scores.real, scores.fake, loss, *means, *arguments, JOINT=scores.joint, **constants,
        )  # fmt: skip
        return loss, means[0], means[1]
    partial = loss.new_empty((2, parts, 2), dtype=torch.float64)
    launch(
        kernels.forward_partial, (parts, 1 + scores.joint), scores.real,
        scores.real, scores.fake, partial, *arguments, JOINT=scores.joint, **constants,
    )  # fmt: skip
    launch(
        kernels.forward_merge, (1,), scores.real, partial, loss, *means, *counts, parts,
        JOINT=scores.joint, ACC=constants["ACC"], BLOCK_S=triton.next_power_of_2(parts),
    )  # fmt: skip
    return loss, means[0], means[1]


def backward(
    dloss: Tensor,
    real: Tensor,
    fake: Tensor | None,
    kind: str,
    real_label: float,
    fake_label: float,
    splits: int,
    need_real: bool,
    need_fake: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the scores that are asked for, in one kernel."""
    scores = _scores(real, fake, splits)
    constants = score_constants(scores.real, kind)
    dreal = torch.empty_like(scores.real) if need_real else None
    dfake = torch.empty_like(scores.fake) if need_fake and fake is not None else None
    results = tuple(real.new_empty(0) if dx is None else dx for dx in (dreal, dfake))
    if splits == 2:
        dfake = dreal
    counts = [n for n, dx in zip(scores[2:4], (dreal, dfake), strict=True) if dx is not None]
    blocks = triton.cdiv(max(counts, default=0), constants["BLOCK"])
    if blocks:
        launch(
            kernels.backward, (blocks,), scores.real,
            dloss, scores.real, scores.fake, dreal, dfake, scores.n_real, scores.n_fake,
            scores.fake_begin, real_label, fake_label, **constants,
        )  # fmt: skip
    return results[0], results[1]


def _scores(real: Tensor, fake: Tensor | None, splits: int) -> _Scores:
    real = real.contiguous(memory_format=suggest_memory_format(real))
    n = real.numel() // splits
    if splits == 2:
        return _Scores(real, real, n, n, n, True)
    if fake is None:
        return _Scores(real, real, n, 0, 0, False)
    fake = fake.contiguous(memory_format=suggest_memory_format(fake))
    return _Scores(real, fake, n, fake.numel(), 0, True)
