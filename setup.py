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

from packaging.version import Version
from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

FAILURES = Path("ganfast/_build_failure.txt")  # read by ganfast/ops/_native.py
MODE = os.environ.get("GANFAST_BUILD", "auto")
if MODE not in ("auto", "cpu", "cuda", "none"):
    raise SystemExit(f"GANFAST_BUILD must be auto, cpu, cuda or none, got {MODE!r}")
CPU_PART, CUDA_PART = "ganfast._native", "ganfast._native_cuda"


def find_cuda_home():
    """Return the toolkit's folder; where nvcc is a wrapper script, nvcc itself has to say it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or "CUDA_HOME" in os.environ:
        return os.environ.get("CUDA_HOME", "")
    said = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return str(Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parent.parent)


def record(part, reason):
    """Keep the reason why a part is missing, for `ganfast info`; fail where it was asked for."""
    if MODE in ("cpu", "cuda"):
        raise SystemExit(f"GANFAST_BUILD={MODE}: cannot build {part}: {reason}")
    print(f"ganfast: {part} is not built: {reason}", file=sys.stderr)
    with FAILURES.open("a") as file:
        file.write(f"{part.partition('.')[2]}.so: {' '.join(str(reason).split())}\n")


def extensions():
    """Return the parts to build and the command class that builds them."""
    FAILURES.unlink(missing_ok=True)
    for library in Path("ganfast").glob("_native*.so"):
        library.unlink()  # an old build would outlive a failed one
    why_none = "GANFAST_BUILD=none" if MODE == "none" else ""
    try:
        os.environ["CUDA_HOME"] = find_cuda_home()
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

        if Version(torch.__version__) < Version("2.11"):
            why_none = why_none or f"torch {torch.__version__} is older than 2.11"
    except ImportError as error:
        why_none = why_none or f"no torch in the build ({error}); use pip --no-build-isolation"
    if why_none:
        for part in (CPU_PART, CUDA_PART):
            record(part, why_none)
        return [], {}

    class Build(BuildExtension):
        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as error:
                record(ext.name, error)

    cxx = ["-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
    cxx += ["-fopenmp"] if sys.platform == "linux" else []  # the library itself is torch's own
    nvcc = ["-O3", "-Xcompiler=-fvisibility=hidden"]
    if os.environ.get("GANFAST_WERROR") == "1":
        cxx, nvcc = [*cxx, "-Werror"], [*nvcc, "-Werror=all-warnings"]
    common = {"py_limited_api": True, "optional": MODE == "auto"}
    sources = {end: sorted(map(str, Path("csrc").rglob(f"*.{end}"))) for end in ("cpp", "cu")}
    found = []
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        record(CPU_PART, "no C++ compiler: install g++ or set CXX")
    else:
        found.append(CppExtension(CPU_PART, sources["cpp"], extra_compile_args=cxx, **common))
    if MODE != "cpu" and torch.version.cuda is not None:
        if not Path(os.environ["CUDA_HOME"], "bin", "nvcc").is_file():
            record(CUDA_PART, "no nvcc: install the CUDA toolkit or set CUDA_HOME")
        else:
            common["extra_compile_args"] = {"cxx": cxx, "nvcc": nvcc}
            found.append(CUDAExtension(CUDA_PART, sources["cu"], **common))
    return found, {"build_ext": Build.with_options(no_python_abi_suffix=True)} if found else {}


class Wheel(bdist_wheel):  # the extension depends on the platform, not on the Python version
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


parts, commands = extensions()
setup(ext_modules=parts, cmdclass={**commands, "bdist_wheel": Wheel})
