"""The losses of one score for Triton kernels, and how scores are shared out to programs.

This is csrc/common/loss_math.h again; ``gan_loss`` has the formulas. x is a score, t its target, p
the weight of positive examples (of logits only).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ganfast.ops.triton_math import (
    at_least,
    divide,
    exp_of_nonpositive,
    log1p_of_minus,
    log1p_of_unit,
    log_of,
)

SCORES_PER_BLOCK = 1024
BLOCKS_IN_ONE_PROGRAM = 8
MOST_PARTS = 256


def score_parts(n: int) -> tuple[int, int]:
    """Return how many programs add up n losses, and how many blocks each of them takes."""
    blocks = -(-n // SCORES_PER_BLOCK)
    if blocks <= BLOCKS_IN_ONE_PROGRAM:
        return 1, blocks
    tiles = max(BLOCKS_IN_ONE_PROGRAM // 2, -(-blocks // MOST_PARTS))
    return -(-blocks // tiles), tiles


def score_constants(x: Tensor, kind: str) -> dict[str, Any]:
    """Return the constants of a kernel on scores of a kind of loss."""
    return {
        "KIND": kind,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "INDEX": tl.int32 if x.numel() < 2**31 else tl.int64,
        "BLOCK": SCORES_PER_BLOCK,
    }


@triton.jit
def sigmoid(x):
    """Compute 1 / (1 + exp(-x))."""
    e = exp_of_nonpositive(-tl.abs(x))
    larger = divide(tl.full(x.shape, 1.0, x.dtype), 1.0 + e)
    return tl.where(x < 0, e * larger, larger)


@triton.jit
def loss_of(x, t, p, KIND: tl.constexpr):
    """Compute the loss of x."""
    if KIND == "probabilities":
        log_x = at_least(log_of(x), -100.0)
        return (t - 1.0) * at_least(log1p_of_minus(x), -100.0) - t * log_x
    elif KIND == "logits":
        # Less than zero rather than min: a NaN is caught by the other term.
        log_sigmoid = tl.where(x < 0, x, 0.0) - log1p_of_unit(exp_of_nonpositive(-tl.abs(x)))
        return (1.0 - t) * x - ((p - 1.0) * t + 1.0) * log_sigmoid
    elif KIND == "squared":
        return (x - t) * (x - t)
    elif KIND == "hinge":
        z = 1.0 - t * x
        return tl.where(z < 0, 0.0, z)
    else:
        return -t * x


@triton.jit
def slope_of(x, t, p, KIND: tl.constexpr):
    """Compute the derivative of ``loss_of`` in x."""
    if KIND == "probabilities":  # the smallest denominator is a float for double too, as in torch
        return divide(x - t, at_least((1.0 - x) * x, 9.999999960041972e-13))
    elif KIND == "logits":
        return (p * t + (1.0 - t)) * sigmoid(x) - p * t
    elif KIND == "squared":
        return 2.0 * (x - t)
    elif KIND == "hinge":
        return tl.where(1.0 - t * x <= 0, 0.0, -t)  # at NaN as behind torch's ReLU
    else:
        return tl.zeros_like(x) - t


@triton.jit
def score_of(x, KIND: tl.constexpr):
    """Compute what a discriminator's score is reported as."""
    if KIND == "logits":
        return sigmoid(x)
    else:
        return x
