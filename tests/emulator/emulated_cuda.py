"""The CUDA kernels on the CPU: built with cuda_emulation.h, and made to serve the CPU.

As a plugin of pytest (``-p emulated_cuda``, with GANFAST_NATIVE=0) it puts them at the CPU's key.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ganfast import backend
from ganfast.ops import extension, registry

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "emulated_cuda"
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX", "c++")
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-w", "-DGANFAST_EMULATE_CUDA", "-U_FORTIFY_SOURCE"]
# Nobody looks at probabilities on a GPU, which an error would stop.
NOT_PROMISED = ["test_out_of_range_is_an_error"]


def can_build() -> bool:
    return shutil.which(COMPILER) is not None and platform.system() == "Linux"


def includes() -> list[Path]:
    """Return the folders of torch's headers."""
    return [TORCH / "include", TORCH / "include/torch/csrc/api/include"]


def build(root: Path = ROOT, folder: Path = FOLDER) -> Path:
    """Compile the emulated library where its sources have changed; return its path."""
    import fcntl  # of Linux, as the emulator is

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # two workers of pytest-xdist may both want it
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(root, folder)


def _build(root: Path, folder: Path) -> Path:
    flags = [*FLAGS, *(["-march=native"] if platform.machine() == "x86_64" else [])]
    flags += shlex.split(os.environ.get("GANFAST_EMULATION_FLAGS", ""))
    headers = [p for p in sorted((root / "csrc").rglob("*")) if p.suffix in (".h", ".cuh")]
    state = hashlib.sha256(repr((flags, torch.__version__, platform.processor())).encode())
    for path in [*headers, root / "tests/emulator/cuda_emulation.h"]:
        state.update(path.read_bytes())
    where = [
        f"-I{root / 'tests/emulator'}",
        f"-I{root / 'csrc'}",
        *(f"-isystem{path}" for path in includes()),
    ]
    objects, commands = [], []
    for source in sorted((root / "csrc").rglob("*.cu")):
        if source.name in ("module.cu", "tickets.cu"):
            continue
        name = hashlib.sha256(state.digest() + source.read_bytes()).hexdigest()[:16]
        objects.append(folder / f"{source.parent.name}_{source.stem}.{name}.o")
        if not objects[-1].exists():
            commands.append(
                [COMPILER, *flags, *where, "-x", "c++", "-c", source, "-o", objects[-1]]
            )
    name = hashlib.sha256(" ".join(path.name for path in objects).encode()).hexdigest()[:16]
    library = folder / f"emulated_cuda.{name}.so"
    if library.exists():
        return library
    for old in {*folder.glob("*.so"), *folder.glob("*.o")} - {*objects}:
        old.unlink()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_call, commands))
    sanitize = [flag for flag in flags if flag.startswith("-fsanitize")]
    link = [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu", "-o", library]
    _call([COMPILER, "-shared", *sanitize, *objects, *link])
    return library


def _call(command: list[str | Path]) -> None:
    """Run a compiler; what it was writing when interrupted is not taken for its result."""
    *command, out = command
    unfinished = Path(out).with_suffix(".unfinished")
    command.append(unfinished)
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}\n{result.stderr[:4000]}")
    unfinished.rename(out)


def serve() -> None:
    """Load the library: its kernels answer at the CPU's key from now on."""
    assert not extension.is_loaded(), "GANFAST_NATIVE=0 keeps the real CPU kernels away"
    torch.ops.load_library(os.environ["GANFAST_EMULATED_CUDA"])
    extension._parts["cpu"] = extension.Part("CUDA kernels, emulated", "")
    backend._native_kernels["CPU"] |= {
        op for op in registry.eager_kernels if registry.has_kernel(op, "CPU")
    }
    assert "native" in backend.available("cpu")


def pytest_configure() -> None:
    if "GANFAST_EMULATED_CUDA" in os.environ:
        serve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.name.startswith(name) for name in NOT_PROMISED):
            item.add_marker(pytest.mark.skip(reason="not promised on GPUs"))


if __name__ == "__main__":
    print(build())
