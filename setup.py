"""Build the C++/CUDA extension where this machine can; the rest of the package is pyproject.toml.

GANFAST_BUILD: auto (what can be built; the CUDA part only for a GPU that is there), cpu, cuda (both
parts, or an error; for TORCH_CUDA_ARCH_LIST, or 9.0), none.
"""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.version import Version
from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

FAILURES = Path("ganfast/_build_failure.txt")  # read by ganfast/ops/extension.py
MODE = os.environ.get("GANFAST_BUILD", "auto")
if MODE not in ("auto", "cpu", "cuda", "none"):
    sys.exit(f"GANFAST_BUILD must be auto, cpu, cuda or none, got {MODE!r}")
CPU_PART, CUDA_PART = "ganfast._native", "ganfast._native_cuda"  # and "_torch2_14" after it


def find_cuda_home():
    """Return the toolkit's folder; where nvcc is a wrapper script, nvcc itself has to say it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or "CUDA_HOME" in os.environ:
        return os.environ.get("CUDA_HOME", "")
    said = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True).stderr
    tops = [line[7:].strip() for line in said.splitlines() if line.startswith("#$ TOP=")]
    return str(Path(tops[0]).resolve() if tops else Path(nvcc).resolve().parent.parent)


def is_clang():
    """Return whether the C++ compiler is clang."""
    command = [os.environ.get("CXX", "c++"), "--version"]
    try:
        return "clang" in subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return False


def record(reason, *parts):
    """Keep the reason why parts are missing, for `ganfast info`; fail where they were asked for."""
    if MODE in ("cpu", "cuda"):
        sys.exit(f"GANFAST_BUILD={MODE}: cannot build {parts[0]}: {reason}")
    print(f"ganfast: not built: {', '.join(parts)}: {reason}", file=sys.stderr)
    lines = [f"{part.partition('.')[2]}: {' '.join(str(reason).split())}\n" for part in parts]
    with FAILURES.open("a") as file:
        file.writelines(lines)


def extensions():
    """Return the parts to build and the command class that builds them."""
    FAILURES.unlink(missing_ok=True)
    for library in Path("ganfast").glob("_native*.so"):
        library.unlink()  # an old build would outlive a failed one
    why_none = "GANFAST_BUILD=none" if MODE == "none" else ""
    os.environ["CUDA_HOME"] = find_cuda_home()
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

        if Version(torch.__version__) < Version("2.11"):
            why_none = why_none or f"torch {torch.__version__} is older than 2.11"
    except ImportError as error:
        why_none = why_none or f"no torch in the build ({error}); use pip --no-build-isolation"
    if why_none:
        record(why_none, CPU_PART, CUDA_PART)
        return [], {}

    # torch's C++ interface is that of one minor release.
    release = "_torch" + "_".join(torch.__version__.split(".")[:2])
    cpu, cuda = CPU_PART + release, CUDA_PART + release

    class Build(BuildExtension):
        def build_extension(self, ext):
            part = copy.copy(self)  # a folder a part: `build_ext --parallel 2` builds both at once
            part.build_temp = os.path.join(self.build_temp, ext.name)
            try:
                super(Build, part).build_extension(ext)
            except Exception as error:
                record(error, ext.name.removesuffix(release))

    cxx = ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    cxx += ["-fvisibility=hidden", "-Wall", "-Wno-psabi"]
    # The library itself is torch's own, which is GNU's on Linux: with clang's calls the extension
    # would not load, and without them its kernels run on one thread.
    cxx += ["-fopenmp"] if sys.platform == "linux" and not is_clang() else []
    nvcc = ["-O3", "-Xcompiler=-fvisibility=hidden"]
    if os.environ.get("GANFAST_WERROR") == "1":
        cxx, nvcc = [*cxx, "-Werror"], [*nvcc, "-Werror=all-warnings"]
    found, common = [], {"py_limited_api": True, "optional": MODE == "auto"}
    common["include_dirs"] = [os.path.abspath("csrc")]
    sources = {end: sorted(map(str, Path("csrc").rglob(f"*.{end}"))) for end in ("cpp", "cu")}
    if sys.platform == "win32":
        record("the kernels need g++ or clang: MSVC has no vector extensions", CPU_PART)
    elif shutil.which(os.environ.get("CXX", "c++")) is None:
        record("no C++ compiler: install g++ or set CXX", CPU_PART)
    else:
        found.append(CppExtension(cpu, sources["cpp"], extra_compile_args=cxx, **common))
    gpu = MODE == "auto" and torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if gpu else (9, 0)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "{}.{}".format(*capability))
    if MODE != "cpu" and torch.version.cuda is not None:
        if MODE == "auto" and not gpu:
            record("no GPU is visible; GANFAST_BUILD=cuda builds it all the same", CUDA_PART)
        elif not Path(os.environ["CUDA_HOME"], "bin", "nvcc").is_file():
            record("no nvcc: install the CUDA toolkit or set CUDA_HOME", CUDA_PART)
        else:
            flags = {"cxx": cxx, "nvcc": nvcc}
            found.append(CUDAExtension(cuda, sources["cu"], extra_compile_args=flags, **common))
    return found, {"build_ext": Build.with_options(no_python_abi_suffix=True)} if found else {}


class Wheel(bdist_wheel):
    def get_tag(self):  # the extension depends on the platform, not on the Python version
        return "py3", "none", super().get_tag()[2]


parts, commands = extensions()
setup(ext_modules=parts, cmdclass={**commands, "bdist_wheel": Wheel})
