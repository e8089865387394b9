"""A copy of the repository with a native extension of its own, for mutation.py and sanitize.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


class Extension:
    """The native extension of a copy of the repository, compiled object by object.

    ``flags`` are the compiler's for optimising and checking, ``link_flags`` for linking; the rest
    is setup.py's.
    """

    def __init__(self, copy: Path, flags: list[str], link_flags: list[str] | None = None) -> None:
        release = "_".join(torch.__version__.split(".")[:2])
        self.library = copy / "ganfast" / f"_native_torch{release}.so"
        self.objects = copy / "build" / "objects"
        self.objects.mkdir(parents=True)
        self.compiler = os.environ.get("CXX", "c++")
        self.flags = [*flags, "-std=c++20", "-fPIC", "-w", f"-I{copy / 'csrc'}"]
        self.flags += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
        self.flags += ["-fopenmp"] if sys.platform == "linux" else []
        torch_folder = Path(torch.__file__).parent
        includes = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
        self.flags += [f"-isystem{path}" for path in includes]
        self.link_flags = [*(link_flags or []), f"-L{torch_folder / 'lib'}"]
        self.link_flags += ["-lc10", "-ltorch", "-ltorch_cpu"]
        self.sources = sorted((copy / "csrc").rglob("*.cpp"))
        # At most two: a file of kernels takes a compiler a gigabyte or more.
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda i: self._compile(i, "o"), range(len(self.sources))))
        self.link()

    def link(self, changed: Path | None = None) -> None:
        """Link the objects, compiling again beside them what a changed file is part of."""
        ends = []
        for i in range(len(self.sources)):
            parts = (self.objects / f"{i}.o.d").read_text().replace("\\\n", " ").split()[1:]
            again = changed is not None and changed in {Path(part).resolve() for part in parts}
            if again:
                self._compile(i, "mutated.o")
            ends.append("mutated.o" if again else "o")
        objects: list[str | Path] = [self.objects / f"{i}.{end}" for i, end in enumerate(ends)]
        if changed is not None and set(ends) == {"o"}:
            sys.exit(f"no object of the extension depends on {changed.name}")
        self.library.unlink(missing_ok=True)
        call(self.compiler, "-shared", *objects, *self.link_flags, "-o", self.library)

    def _compile(self, i: int, end: str) -> None:
        out = self.objects / f"{i}.{end}"
        where = "-o", out, "-MD", "-MF", f"{out}.d"
        call(self.compiler, *self.flags, "-c", self.sources[i], *where)


def call(*command: str | Path) -> None:
    """Run a command; end the program with what it said where it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr[:2000]}")


def copy_repository(copy: Path) -> None:
    """Copy what git tracks or would add, as it is in the working tree."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    for name in subprocess.check_output(command, text=True).rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
