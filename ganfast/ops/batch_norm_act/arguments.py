"""What the Python kernels of ``batch_norm_act`` ask of their arguments.

The extension asks the same, in ``csrc/common/checks.h``. ``a`` has an op's arguments by the names
of its schema, all on one device.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.activations import check_activation, check_order
from ganfast.ops.tensors import accumulation_dtype, check_floating_point


def check_train(a: SimpleNamespace) -> None:
    """Raise if the arguments of the training op do not fit x, or share memory they write to."""
    _check_input(a, a.splits)
    running = {"running_mean": a.running_mean, "running_var": a.running_var}
    _check_vectors(a.x, weight=a.weight, bias=a.bias, **running)
    read = {"running_var": a.running_var, "the input": a.x, "weight": a.weight, "bias": a.bias}
    for name, buffer in running.items():
        for other, tensor in read.items():
            if name != other and _overlap(buffer, tensor):
                raise RuntimeError(
                    f"{name} is updated in place and must not share memory with {other}: "
                    "clone() one of them"
                )
    count = a.num_batches_tracked
    if count is not None and (count.numel() != 1 or count.dtype != torch.int64):
        raise RuntimeError(
            "num_batches_tracked must be one element of int64, "
            f"got {count.numel()} of {count.dtype}"
        )
    if a.momentum is None and count is None and any(t is not None for t in running.values()):
        raise ValueError("momentum=None averages over all batches: give num_batches_tracked")


def check_eval(a: SimpleNamespace) -> None:
    """Raise if the arguments of the evaluation op do not fit x."""
    _check_input(a)
    running = {"running_mean": a.running_mean, "running_var": a.running_var}
    _check_vectors(a.x, weight=a.weight, bias=a.bias, **running)


def check_backward(a: SimpleNamespace) -> None:
    """Raise if ``stats`` are not what a forward op saved for x, or a gradient has another shape."""
    _check_saved(a)
    _check_gradients(a.x, dy=a.dy)


def check_double_backward(a: SimpleNamespace) -> None:
    """Raise if ``stats`` are not what a forward op saved for x, or a gradient has another shape."""
    _check_saved(a)
    _check_gradients(a.x, dy=a.dy, ddx=a.ddx)
    _check_vectors(a.x, ddweight=a.ddweight, ddbias=a.ddbias)


def _check_input(a: SimpleNamespace, splits: int = 1) -> None:
    x = a.x
    check_floating_point("batch_norm_act", x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape (N, C, ...), got {tuple(x.shape)}")
    if splits < 1 or x.shape[0] % splits:
        raise ValueError(
            f"splits must divide the batch into equal chunks: got splits={splits} "
            f"for a batch of {x.shape[0]}"
        )
    check_activation(a.activation)
    check_order(a.order)


def _check_vectors(x: Tensor, **vectors: Tensor | None) -> None:
    wide = accumulation_dtype(x)
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.numel() != x.shape[1]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements not {vector.numel()}")
        if vector.dtype not in (wide, x.dtype):
            raise RuntimeError(
                f"mixed dtype: expected {name} to have dtype {wide} or {x.dtype} for an input of "
                f"{x.dtype}, got {vector.dtype}"
            )


def _check_saved(a: SimpleNamespace) -> None:
    _check_input(a)
    _check_vectors(a.x, weight=a.weight)
    shape, dtype = (4, a.x.shape[1]), accumulation_dtype(a.x)
    if a.stats.shape[1:] != shape or a.stats.dtype != dtype:
        raise RuntimeError(
            f"stats must have shape (splits, 4, {shape[1]}) in {dtype}, "
            f"got {tuple(a.stats.shape)} in {a.stats.dtype}"
        )
    _check_input(a, a.stats.shape[0])


def _check_gradients(x: Tensor, **gradients: Tensor | None) -> None:
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        if gradient.shape != x.shape:
            raise RuntimeError(
                f"{name} must have the shape of the input, {tuple(x.shape)}, "
                f"got {tuple(gradient.shape)}"
            )
        if gradient.is_complex():
            raise RuntimeError(f"{name} must be real, got {gradient.dtype}")


def _overlap(a: Tensor | None, b: Tensor | None) -> bool:
    """Say whether two dense tensors share memory; tensors with gaps may lie in each other's."""
    if a is None or b is None:
        return False
    if not all(t.is_contiguous(memory_format=suggest_memory_format(t)) for t in (a, b)):
        return False
    begin = max(a.data_ptr(), b.data_ptr())
    return begin < min(t.data_ptr() + t.numel() * t.itemsize for t in (a, b))
