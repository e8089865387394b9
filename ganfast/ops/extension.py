"""Find and load the C++ extension, and keep the reason if it could not be loaded.

torch's C++ interface changes from one minor release to the next, so a library serves one of them
and has it in its name; an installation may hold several.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

import torch

PACKAGE = Path(__file__).resolve().parent.parent
BUILD_FAILURE = PACKAGE / "_build_failure.txt"
"""What the compiler said when setup.py could not build a part; setup.py writes it."""

TORCH = "_".join(torch.__version__.split(".")[:2])
"""The minor release of torch that runs, as names of libraries have it: "2_14"."""

STEMS = {"cpu": "_native", "cuda": "_native_cuda"}
"""What the libraries of each part are called, before "_torch2_14.so"."""

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
    _parts["cpu"] = _load("cpu", "ganfast_build_description")
    if torch.version.cuda is None:
        _parts["cuda"] = Part(None, f"torch {torch.__version__} is a build without CUDA")
    else:
        _parts["cuda"] = _load("cuda", "ganfast_cuda_build_description")


def is_loaded(part: str = "cpu") -> bool:
    """Return whether a part ("cpu" or "cuda") of the extension is loaded."""
    return _parts[part].description is not None


def part(name: str) -> Part:
    """Return what is known of a part, "cpu" or "cuda"."""
    return _parts[name]


def library(name: str) -> Path:
    """Return where the library of a part, "cpu" or "cuda", lies if there is one for this torch."""
    return PACKAGE / f"{STEMS[name]}_torch{TORCH}.so"


def probe_cuda(device: int) -> str:
    """Run a trivial kernel of the CUDA part on a GPU; return why it could not, or ""."""
    probe = ctypes.CDLL(str(library("cuda"))).ganfast_cuda_probe
    probe.restype = ctypes.c_char_p
    reason: str = probe(device).decode()
    return reason


def rebuild_command() -> str:
    """Return the one command that builds the extension for this installation."""
    source = PACKAGE.parent
    if (source / "setup.py").exists():
        return f"{REBUILD} -e {source}"
    return f"{REBUILD} --no-binary ganfast ganfast"


def _load(name: str, describe: str) -> Part:
    if os.environ.get("GANFAST_NATIVE", "1") == "0":
        return Part(None, "switched off by GANFAST_NATIVE=0")
    path = library(name)
    if not path.exists():
        return Part(None, _why_missing(name))
    try:
        torch.ops.load_library(path)
        function = getattr(ctypes.CDLL(str(path)), describe)
    except (OSError, AttributeError) as error:
        return Part(None, f"{path.name} does not load with torch {torch.__version__}: {error}")
    function.restype = ctypes.c_char_p
    return Part(function().decode(), "")


def _why_missing(name: str) -> str:
    """Say what an attempt to build it said, or which releases of torch there are libraries for."""
    failure = BUILD_FAILURE.read_text() if BUILD_FAILURE.exists() else ""
    said = [line for line in failure.splitlines() if line.startswith(f"{STEMS[name]}: ")]
    start = f"{STEMS[name]}_torch"
    others = [path.stem.removeprefix(start).split("_") for path in PACKAGE.glob(f"{start}*.so")]
    if said or not others:
        return f"not built ({said[0].partition(': ')[2] if said else 'no build was tried'})"
    # Never tried: one made for another torch may end the process.
    have = ", ".join(".".join(release) for release in sorted(others, key=lambda r: [*map(int, r)]))
    return f"built for torch {have}, and this is torch {torch.__version__}"
