"""Dtypes and layouts that the kernels of every op share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic, sums and statistics of ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_floating_point(op: str, x: Tensor) -> None:
    """Raise, as torch does, if an op's input has no floating-point numbers."""
    if not x.is_floating_point():
        raise NotImplementedError(f'"{op}" not implemented for {x.dtype}')


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return new memory in x's shape and memory format, without gaps."""
    return torch.empty_like(x, dtype=dtype, memory_format=suggest_memory_format(x))


def result_like(x: Tensor, y: Tensor) -> Tensor:
    """Return y, of x's shape, in x's dtype and memory format."""
    return y.to(x.dtype).contiguous(memory_format=suggest_memory_format(x))
