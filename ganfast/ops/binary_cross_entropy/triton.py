"""The Triton kernels of ``binary_cross_entropy`` on the host's side.

Arguments and results are those of the schemas in this folder's ``__init__``. As torch on a GPU, and
unlike the kernels on the CPU, these do not raise where a probability is outside [0, 1]: that would
wait for the device. The loss is NaN there.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.ops.binary_cross_entropy import triton_kernels as kernels
from ganfast.ops.triton_launch import launch
from ganfast.ops.triton_losses import score_constants, score_parts


def forward(
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Compute the loss: in one kernel, or for the sum of many scores in two."""
    operands, constants = _prepared(x, target, label, weight, pos_weight, from_logits)
    x, n = operands[0], x.numel()
    if reduction == "none":
        y = torch.empty_like(x)
        if n:
            blocks = triton.cdiv(n, constants["BLOCK"])
            launch(kernels.losses, (blocks,), x, *operands, y, n, **constants)
        return y
    y = x.new_empty(())
    divisor = n if reduction == "mean" else None
    parts, tiles = score_parts(n)
    if parts == 1:
        launch(kernels.sums, (1,), x, *operands, y, n, tiles, divisor, LAST=True, **constants)
        return y
    partial = x.new_empty(parts, dtype=torch.float64)
    launch(kernels.sums, (parts,), x, *operands, partial, n, tiles, None, LAST=False, **constants)
    launch(
        kernels.merge, (1,), x, partial, y, parts, divisor,
        ACC=constants["ACC"], BLOCK_S=triton.next_power_of_2(parts),
    )  # fmt: skip
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    """Compute dx in one kernel; a single dy is read on its device."""
    operands, constants = _prepared(x, target, label, weight, pos_weight, from_logits)
    x, n = operands[0], x.numel()
    dx = torch.empty_like(x)
    each = reduction == "none"
    if each:
        dy = dy.expand(x.shape).contiguous(memory_format=suggest_memory_format(x))
    if n:
        launch(
            kernels.gradients, (triton.cdiv(n, constants["BLOCK"]),), x,
            dy, *operands, dx, n, n if reduction == "mean" else None, EACH=each, **constants,
        )  # fmt: skip
    return dx


def _prepared(
    x: Tensor,
    target: Tensor | None,
    label: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the operands in one order of memory, and the kernels' constants."""
    memory_format = suggest_memory_format(x)
    ordered = [
        None if tensor is None else tensor.contiguous(memory_format=memory_format)
        for tensor in (target, weight, pos_weight)
    ]
    x = x.contiguous(memory_format=memory_format)
    constants = score_constants(x, "logits" if from_logits else "probabilities")
    return (x, ordered[0], label, *ordered[1:]), constants
