"""The CPU kernels for arm64, compiled by a cross compiler and run in an emulator; clang on x86-64.

Debian: ``apt-get install g++-aarch64-linux-gnu qemu-user clang``.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from paths import CSRC, TESTS

pytestmark = pytest.mark.slow

COMPILERS = {
    "arm64, g++": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
    "x86-64, clang without OpenMP": (["clang++", "-Wall", "-Wextra", "-Werror"], []),
}


@pytest.mark.parametrize("name", COMPILERS)
def test_kernels_without_torch(name, tmp_path):
    compiler, emulator = COMPILERS[name]
    for program in (compiler[0], *emulator[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    from torch.utils.cpp_extension import include_paths

    includes = [flag for path in include_paths() for flag in ("-isystem", path)]
    sources = [CSRC / "cpu" / "baseline.cpp", TESTS / "ops" / "kernels_alone.cpp"]
    subprocess.run(
        [*compiler, "-std=c++20", "-O2", "-ffp-contract=fast", "-fno-math-errno",
         "-fno-trapping-math", "-Wno-psabi", f"-I{CSRC}", *includes, *map(str, sources),
         "-o", "kernels"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    command = [*emulator, str(tmp_path / "kernels")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
