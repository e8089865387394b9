"""Run the op tests on a native extension that watches its memory and its arithmetic.

Usage::

    python tests/package/sanitize.py      # every instruction set of this processor
    python tests/package/sanitize.py --examples 100 --capability avx2 baseline

Compiles the CPU part in a temporary copy of the repository with AddressSanitizer, which reports
memory read or written outside its bounds, and UndefinedBehaviorSanitizer, which reports overflow,
misalignment and the like. Needs g++ on Linux. The exit code is 1 where a test fails or either
sanitizer reports; what it says then stands in the output.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from extension_copy import Extension, call, copy_repository

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# As mutation.py optimises: quick to compile, x * y + z still fused. The assertions check the
# indices of std::vector.
FLAGS = ["-O1", "-fexpensive-optimizations", "-g1", "-fno-omit-frame-pointer"]
FLAGS += ["-D_GLIBCXX_ASSERTIONS", *SANITIZE]
CAPABILITIES = ["best", "avx512", "avx2", "baseline"]
TESTS = ["test_batch_norm_act", "test_binary_cross_entropy", "test_gan_loss", "test_fuzz"]

# One mistake each, to see that the tests run in a process where it would be reported.
MISTAKES = """
#include <cstdint>
extern "C" float read(const float* p, long i) { return p[i]; }
extern "C" int add(int a, int b) { return a + b; }
extern "C" float read_bytes(const char* p, long i) {
  return *reinterpret_cast<const float*>(p + i);
}
"""
MAKE_MISTAKE = """
import ctypes, sys, torch
library, x = ctypes.CDLL(sys.argv[1]), torch.zeros(5)
library.read.argtypes = library.read_bytes.argtypes = ctypes.c_void_p, ctypes.c_long
{0}
"""
REPORTS = {
    "library.read(x.data_ptr(), 5)": "heap-buffer-overflow",
    "library.read(x.data_ptr(), -1)": "heap-buffer-overflow",
    "library.add(2**31 - 1, 1)": "signed integer overflow",
    "library.read_bytes(x.data_ptr(), 1)": "misaligned address",
}
DESCRIBE = "from ganfast.ops import extension; print(extension.part('cpu').description)"


def environment(copy: Path, capability: str = "best") -> dict[str, str]:
    """Return the environment in which Python loads sanitized libraries of the copy."""
    libraries = [library_of_compiler(f"lib{name}.so") for name in ("asan", "stdc++")]
    changed = {
        # Python itself is not sanitized: the runtime has to be there before it, and the C++
        # library with it, or the runtime does not find the exceptions to intercept.
        "LD_PRELOAD": " ".join(libraries),
        # Python never frees its interned objects; torch's freed tensors would fill the memory.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16",
        "OMP_WAIT_POLICY": "passive",  # spinning threads cost minutes where other programs run
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # only the CPU part is sanitized
        "GANFAST_NATIVE": "1",
        "GANFAST_REQUIRE": "native",
        "GANFAST_CPU_CAPABILITY": "" if capability == "best" else capability,
    }
    return os.environ | changed


def library_of_compiler(name: str) -> str:
    """Return the path of a library that comes with the compiler."""
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_file():
        sys.exit(f"{compiler} has no {name}: install g++ with its sanitizers, or set CXX=g++")
    return path


def check_sanitizers(copy: Path) -> None:
    """Make mistakes in a small library of their own; end the program if one goes unnoticed."""
    source, library = copy / "mistakes.cpp", copy / "mistakes.so"
    source.write_text(MISTAKES)
    call(os.environ.get("CXX", "c++"), *FLAGS, "-shared", "-fPIC", source, "-o", library)
    for mistake, report in REPORTS.items():
        result = subprocess.run(
            [sys.executable, "-c", MAKE_MISTAKE.format(mistake), library],
            env=environment(copy), capture_output=True, text=True,
        )  # fmt: skip
        if result.returncode == 0 or report not in result.stderr:
            sys.exit(f"{mistake}: no report of a {report}:\n{result.stderr[-2000:]}")
        print(f"{mistake:37}  reported: {report}", flush=True)


def run_tests(copy: Path, capability: str, examples: int) -> bool:
    """Run the tests with one instruction set; return whether they passed without a report."""
    command = [sys.executable, "-m", "pytest", "-m", "", "-q", "-x", "-k", "not eager"]
    command += ["--capture=sys"]  # a report goes to the process's own stderr, and then it ends
    command += [f"tests/ops/{name}.py" for name in TESTS]
    variables = environment(copy, capability) | {"GANFAST_FUZZ_EXAMPLES": str(examples)}
    return subprocess.run(command, cwd=copy, env=variables).returncode == 0


def main() -> int:
    """Compile, check that the sanitizers work, run the tests; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=2000, help="drawn for an op (2000)")
    parser.add_argument("--capability", nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ganfast-sanitize-") as folder:
        copy = Path(folder).resolve()
        copy_repository(copy)
        check_sanitizers(copy)
        print("compiling the extension", flush=True)
        Extension(copy, FLAGS, SANITIZE)
        print(f"compiled after {time.monotonic() - start:.0f} s", flush=True)
        seen: set[str] = set()
        for capability in args.capability:
            said = subprocess.run(
                [sys.executable, "-c", DESCRIBE],
                cwd=copy, env=environment(copy, capability),
                stdout=subprocess.PIPE, text=True, check=True,
            ).stdout.strip()  # fmt: skip
            if said in seen:  # this processor has nothing wider
                continue
            seen.add(said)
            print(f"{capability}: {said}", flush=True)
            if not run_tests(copy, capability, args.examples):
                print(f"{capability}: failed after {time.monotonic() - start:.0f} s")
                return 1
    print(f"{len(seen)} instruction sets, no report, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
