"""Find and load the C++ extension, and keep the reason if it could not be loaded."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

import torch

PACKAGE = Path(__file__).resolve().parent.parent
BUILD_FAILURE = PACKAGE / "_build_failure.txt"
"""What the compiler said when setup.py could not build a part; setup.py writes it."""

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall"


class Part(NamedTuple):
    """One shared library of the extension.

    Attributes:
        description: what it was built with; None if it is not loaded.
        reason: why it is not loaded, and what to do; empty if it is.
    """

    description: str | None
    reason: str


_parts: dict[str, Part] = {}


def load() -> None:
    """Load the CPU and CUDA parts if they exist; never raise."""
    _parts["cpu"] = _load("_native.so", "ganfast_build_description")
    if torch.version.cuda is None:
        _parts["cuda"] = Part(None, f"torch {torch.__version__} is a build without CUDA")
    else:
        _parts["cuda"] = _load("_native_cuda.so", "ganfast_cuda_build_description")


def is_loaded(part: str = "cpu") -> bool:
    """Return whether a part ("cpu" or "cuda") of the extension is loaded."""
    return _parts[part].description is not None


def part(name: str) -> Part:
    """Return what is known of a part, "cpu" or "cuda"."""
    return _parts[name]


def probe_cuda(device: int) -> str:
    """Run a trivial kernel of the CUDA part on a GPU; return why it could not, or ""."""
    probe = ctypes.CDLL(str(PACKAGE / "_native_cuda.so")).ganfast_cuda_probe
    probe.restype = ctypes.c_char_p
    reason: str = probe(device).decode()
    return reason


def rebuild_command() -> str:
    """Return the one command that builds the extension for this installation."""
    source = PACKAGE.parent
    if (source / "setup.py").exists():
        return f"{REBUILD} -e {source}"
    return f"{REBUILD} --no-binary ganfast ganfast"


def _load(filename: str, describe: str) -> Part:
    if os.environ.get("GANFAST_NATIVE", "1") == "0":
        return Part(None, "switched off by GANFAST_NATIVE=0")
    path = PACKAGE / filename
    if not path.exists():
        failure = BUILD_FAILURE.read_text() if BUILD_FAILURE.exists() else ""
        said = next((line for line in failure.splitlines() if line.startswith(filename)), "")
        return Part(None, f"not built ({said.partition(': ')[2] or 'no build was tried'})")
    try:
        torch.ops.load_library(path)
        function = getattr(ctypes.CDLL(str(path)), describe)
    except (OSError, AttributeError) as error:
        return Part(None, f"{filename} does not load with torch {torch.__version__}: {error}")
    function.restype = ctypes.c_char_p
    return Part(function().decode(), "")
