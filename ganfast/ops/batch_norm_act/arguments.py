"""The checks of arguments that the Python kernels of ``batch_norm_act`` share."""

from __future__ import annotations

from torch import Tensor

from ganfast.ops.tensors import accumulation_dtype, check_floating_point


def check_vectors(x: Tensor, **vectors: Tensor | None) -> None:
    """Raise, as torch does, if the dtypes or sizes of the C-sized vectors do not fit x."""
    check_floating_point("batch_norm_act", x)
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
