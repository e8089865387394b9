"""Build both parts of the extension for a GPU machine: on it, or elsewhere as a wheel for it.

Usage::

    python benchmarks/gpu_build.py               # in place, for the GPU that is there
    python benchmarks/gpu_build.py --wheel dist  # for a machine with this Python's torch

In place, nothing is built where the parts beside the package, or those of a wheel in dist/, were
made from these sources for this torch and run on this GPU. A wheel needs nvcc but no GPU; it has
code for TORCH_CUDA_ARCH_LIST, by default 9.0 (H100, H200).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("_native.so", "_native_cuda.so")
BUILT_FROM = ("csrc", "ganfast", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def build_id() -> bytes:
    """Return what a library made from these sources for this torch has as its build id."""
    import torch

    state = hashlib.sha1(torch.__version__.encode())
    for path in [ROOT / "setup.py", *sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]:
        state.update(path.name.encode() + path.read_bytes())
    return state.digest()


def environment(architectures: str) -> dict[str, str]:
    """Return the environment in which setup.py builds both parts and marks them."""
    flags = f"{os.environ.get('LDFLAGS', '')} -Wl,--build-id=0x{build_id().hex()}".strip()
    changes = {"GANFAST_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": architectures, "LDFLAGS": flags}
    return {**os.environ, **changes}


def take_from_wheel() -> None:
    """Put the libraries of a wheel in dist/ beside the package if it was made for what is here."""
    for path in sorted((ROOT / "dist").glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            names = [f"ganfast/{library}" for library in LIBRARIES]
            if not set(names) <= set(wheel.namelist()):
                continue
            libraries = {name: wheel.read(name) for name in names}
        if all(build_id() in library for library in libraries.values()):
            print(f"taking both parts from {path.name}")
            for name, library in libraries.items():
                (ROOT / name).unlink(missing_ok=True)  # a process may have the old one mapped
                (ROOT / name).write_bytes(library)
            return
        print(f"{path.name} was made from other sources or for another torch")


def why_not_usable() -> str:
    """Return why the libraries beside the package cannot serve this GPU, or ""."""
    for library in LIBRARIES:
        path = ROOT / "ganfast" / library
        if not path.exists():
            return f"{library} is not there"
        # Before it is loaded: one made for another torch may end the process.
        if build_id() not in path.read_bytes():
            return f"{library} was made from other sources or for another torch"
    code = (
        "from ganfast.ops import extension\n"
        "cpu, cuda = extension.part('cpu'), extension.part('cuda')\n"
        "print(cpu.reason or cuda.reason or extension.probe_cuda(0))"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    return said.stderr.strip() if said.returncode else said.stdout.strip()


def build_in_place() -> int:
    """Build for the GPU that is there, both parts at once, unless that is done."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU; to build for another machine's, name a folder: --wheel dist")
    reason = why_not_usable()
    if reason:
        take_from_wheel()
        reason = why_not_usable()
    if not reason:
        print("both parts are there already")
        return 0
    print(f"building: {reason}", flush=True)
    major, minor = torch.cuda.get_device_capability()
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", "2"]
    return subprocess.run(command, cwd=ROOT, env=environment(f"{major}.{minor}")).returncode


def build_wheel(folder: Path) -> int:
    """Build a wheel from a copy, which leaves the libraries of the working tree alone."""
    import torch

    copy = ROOT / "build" / f"wheel-torch-{torch.__version__}"  # kept: its objects are reused
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.rmtree(copy / name, ignore_errors=True)
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    # On the command line, build_ext would run a second time, with flags that are there twice.
    (copy / "setup.cfg").write_text("[build_ext]\nparallel = 2\n")
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder.resolve())]
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")
    return subprocess.run(command, cwd=copy, env=environment(architectures)).returncode


def main() -> int:
    """Build; return the exit code of setup.py."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, metavar="FOLDER", help="build a wheel into a folder")
    folder = parser.parse_args().wheel
    return build_wheel(folder) if folder else build_in_place()


if __name__ == "__main__":
    sys.exit(main())
