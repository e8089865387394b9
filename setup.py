"""Build the C++/CUDA extension where this machine can.

GANFAST_BUILD chooses the parts: auto (what can be built; the default), cpu, cuda (both parts, and
an error where one cannot be built) or none. Everything else about the package is pyproject.toml.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

HERE = Path(__file__).parent
FAILURES = HERE / "ganfast" / "_build_failure.txt"  # read by ganfast/ops/_native.py
MODE = os.environ.get("GANFAST_BUILD", "auto")
if MODE not in ("auto", "cpu", "cuda", "none"):
    raise SystemExit(f"GANFAST_BUILD must be auto, cpu, cuda or none, got {MODE!r}")


def find_cuda_home():
    """Return the toolkit's folder; where nvcc is a wrapper script, nvcc itself has to say it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or "CUDA_HOME" in os.environ:
        return os.environ.get("CUDA_HOME")
    said = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return str(Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parent.parent)


def record(part, reason):
    """Keep the reason why a part is missing, for `ganfast info`; fail where it was asked for."""
    if MODE != "auto":
        raise SystemExit(f"GANFAST_BUILD={MODE}: cannot build {part}: {reason}")
    print(f"ganfast: {part} is not built: {reason}", file=sys.stderr)
    with FAILURES.open("a") as file:
        file.write(f"{part}.so: {' '.join(str(reason).split())}\n")


def extensions():
    """Return the parts to build and the command that builds them."""
    FAILURES.unlink(missing_ok=True)
    for library in (HERE / "ganfast").glob("_native*.so"):
        library.unlink()  # an old build would outlive a failed one
    if MODE == "none":
        FAILURES.write_text("_native.so: GANFAST_BUILD=none\n_native_cuda.so: GANFAST_BUILD=none\n")
        return [], {}
    try:
        os.environ["CUDA_HOME"] = find_cuda_home() or ""
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        reason = f"torch cannot be imported while building ({error}): --no-build-isolation is needed"
        record("_native", reason)
        record("_native_cuda", reason)
        return [], {}

    class Build(BuildExtension):
        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as error:
                record(ext.name.partition(".")[2], error)

    flags = ["-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
    flags += ["-fopenmp"] if sys.platform == "linux" else []  # the library itself is torch's own
    flags += ["-Werror"] if os.environ.get("GANFAST_WERROR") == "1" else []
    found = []
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        record("_native", "no C++ compiler: install g++ or set CXX")
    else:
        sources = sorted(str(p.relative_to(HERE)) for p in HERE.glob("csrc/**/*.cpp"))
        found.append(CppExtension("ganfast._native", sources, extra_compile_args=flags,
                                  py_limited_api=True, optional=MODE == "auto"))
    if MODE != "cpu" and torch.version.cuda is not None:
        if not os.path.isfile(os.path.join(os.environ["CUDA_HOME"], "bin", "nvcc")):
            record("_native_cuda", "no nvcc: install the CUDA toolkit or set CUDA_HOME")
        else:
            sources = sorted(str(p.relative_to(HERE)) for p in HERE.glob("csrc/**/*.cu"))
            nvcc_flags = ["-O3", "-g0", "-Xcompiler=-fvisibility=hidden", "-Werror=all-warnings"]
            found.append(CUDAExtension("ganfast._native_cuda", sources,
                                       extra_compile_args={"cxx": flags, "nvcc": nvcc_flags},
                                       py_limited_api=True, optional=MODE == "auto"))
    return found, {"build_ext": Build.with_options(no_python_abi_suffix=True)} if found else {}


class Wheel(bdist_wheel):
    """Tag a wheel with the platform alone: the extension does not depend on the Python version."""

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if platform != "any" else (python, abi, platform)


parts, commands = extensions()
setup(ext_modules=parts, cmdclass={**commands, "bdist_wheel": Wheel})
