"""Build both parts of the extension in place, for the GPU that is there.

Nothing is built where the parts beside the package, or those of a wheel in dist/, were made from
these sources for this torch and run on this GPU. build_wheel.py makes such a wheel elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def libraries() -> list[str]:
    """Return the names of both parts' libraries for this torch."""
    import torch

    release = "_".join(torch.__version__.split(".")[:2])
    return [f"{stem}_torch{release}.so" for stem in ("_native", "_native_cuda")]


def build_id() -> bytes:
    """Return what a library made from these sources for this torch has as its build id."""
    import torch

    state = hashlib.sha1(torch.__version__.encode())
    for path in [ROOT / "setup.py", *sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]:
        state.update(path.name.encode() + path.read_bytes())
    return state.digest()


def environment(mode: str = "cuda") -> dict[str, str]:
    """Return the environment in which setup.py builds and marks the parts of GANFAST_BUILD=mode."""
    if sys.platform != "linux":
        return {**os.environ, "GANFAST_BUILD": mode}
    flags = f"{os.environ.get('LDFLAGS', '')} -Wl,--build-id=0x{build_id().hex()}".strip()
    return {**os.environ, "GANFAST_BUILD": mode, "LDFLAGS": flags}


def take_from_wheel() -> None:
    """Put the libraries of a wheel in dist/ beside the package if it was made for what is here."""
    for path in sorted((ROOT / "dist").glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            names = [f"ganfast/{library}" for library in libraries()]
            if not set(names) <= set(wheel.namelist()):
                continue
            contents = {name: wheel.read(name) for name in names}
        if all(build_id() in library for library in contents.values()):
            print(f"taking both parts from {path.name}")
            for name, library in contents.items():
                (ROOT / name).unlink(missing_ok=True)  # a process may have the old one mapped
                (ROOT / name).write_bytes(library)
            return
        print(f"{path.name} was made from other sources or for another torch")


def why_not_usable() -> str:
    """Return why the libraries beside the package cannot serve this GPU, or ""."""
    for library in libraries():
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


def main() -> int:
    """Build both parts at once, unless that is done; return the exit code of setup.py."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU; to build for another machine's: make wheel GANFAST_BUILD=cuda")
    reason = why_not_usable()
    if reason:
        take_from_wheel()
        reason = why_not_usable()
    if not reason:
        print("both parts are there already")
        return 0
    print(f"building: {reason}", flush=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", "2"]
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    changes = {"TORCH_CUDA_ARCH_LIST": capability}
    return subprocess.run(command, cwd=ROOT, env={**environment(), **changes}).returncode


if __name__ == "__main__":
    sys.exit(main())
