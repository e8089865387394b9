"""Whether Triton's kernels can run here, and how they are launched."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor


def interpreted() -> bool:
    """Return whether Triton runs its kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(device: str) -> str:
    """Return why Triton's kernels do not run on a type of device, or ""."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu":
        return "" if interpreted() else "on a CPU they need its interpreter (TRITON_INTERPRET=1)"
    if device != "cuda":
        return f"there are none for the device type {device!r}"
    return "" if torch.version.cuda else f"torch {torch.__version__} is a build without CUDA"


def launch(
    kernel: Any, grid: tuple[int, ...], on: Tensor, *arguments: Any, **constants: Any
) -> None:
    """Launch a kernel on the device of a tensor."""
    # Without this fusion a GPU computes what the interpreter does: a multiplication and an addition
    # are rounded once only if they are written as tl.fma.
    constants["enable_fp_fusion"] = False
    if on.is_cuda and on.device.index != torch.cuda.current_device():
        with torch.cuda.device(on.device):
            kernel[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants)


def dense(vector: Tensor | None) -> Tensor | None:
    """Return a vector without gaps between its values: itself if it has none."""
    return vector if vector is None or vector.is_contiguous() else vector.contiguous()
