"""What the Python kernels of ``batch_norm_act`` ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that sums and statistics of ``x`` are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_vectors(x: Tensor, **vectors: Tensor | None) -> None:
    """Raise, as torch does, where the dtypes or sizes of the C-sized vectors do not fit x."""
    if not x.is_floating_point():
        raise NotImplementedError(f'"batch_norm_act" not implemented for {x.dtype}')
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
