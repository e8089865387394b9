"""The CUDA kernels without a GPU: their own code on the CPU, and what the compiler made of it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import emulated_cuda
import pytest
from conftest import missing
from paths import CSRC, ROOT, TESTS, file_of

OPS = (
    "batch_norm_act", "fuzz", "binary_cross_entropy", "gan_loss", "gan_loss_nn",
    "refused_arguments",
)  # fmt: skip
FORMS = str(TESTS / "emulator" / "emulated_forms.py")
CUDA = CSRC / "cuda"
KERNELS = [CUDA / "losses/kernels.cu", *sorted((CUDA / "batch_norm_act").glob("*float*.cu"))]


@pytest.fixture(scope="module")
def emulated() -> Path:
    if not emulated_cuda.can_build():
        missing("cuda", "the emulator needs Linux and a C++ compiler")
    return emulated_cuda.build()


def run_emulated(library: Path, *arguments: str, **environment: str) -> None:
    """Run tests in a process where the emulated kernels serve the CPU."""
    paths = [str(ROOT), str(TESTS / "emulator"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"GANFAST_NATIVE": "0", "GANFAST_EMULATED_CUDA": str(library)}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment |= {"GANFAST_REQUIRE": "native"}
    command = [sys.executable, "-m", "pytest", "-p", "emulated_cuda", "-q", "-x", "--no-header"]
    result = subprocess.run(
        [*command, *arguments], env=os.environ | environment, capture_output=True, text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_emulated_kernels_pass_the_tests_of_the_ops(emulated):
    run_emulated(emulated, "-m", "", "-k", "native", *map(file_of, OPS))


def test_a_form_of_each_kernel(emulated):
    run_emulated(emulated, FORMS)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "tests"), [("forwards", ""), ("backwards", "float32")])
def test_every_form(emulated, order, tests):
    """In both orders of threads and blocks: a barrier that is missing shows in one of them."""
    run_emulated(emulated, FORMS, "-m", "", "-k", tests, GANFAST_EMULATION_ORDER=order)


BROKEN_KERNELS = {
    "a barrier after a thread of the block has ended": "if (threadIdx.x > 0) __syncthreads();",
    "threads wait at a barrier that others do not come to": (
        "if (threadIdx.x % 2) __syncthreads(); else cluster_arrive(), cluster_wait();"
    ),
    "an index lies outside": "shared_storage<Room>()[threadIdx.x + 1] = 0;",
    "a kernel that starts early": "",
}
BROKEN = """
#include "cuda/block_sum.cuh"
namespace ganfast {
using Room = SharedArray<float, 64>;
__global__ void broken(int) { KERNEL }
__global__ void read_unwritten(float* found) { *found = shared_storage<Room>()[threadIdx.x]; }
}
int main() {
  using namespace ganfast;
  float found = 0;
  launch(read_unwritten, {1, dim3(64)}, nullptr, &found);
  if (found == found) return 2;
  try {
    launch(broken, {1, dim3(64), 1, true}, nullptr, 0);
  } catch (const std::exception& error) {
    return std::string(error.what()).find("REASON") == std::string::npos;
  }
  return 3;
}
"""


DIVISION = """
#include <random>
#include "cuda/vector_io.cuh"
int main() {
  std::mt19937 random;
  for (int i = 0; i < 1000000; ++i) {
    const uint32_t divisor = (random() >> (1 + random() % 31)) | 1, n = random() >> 1;
    const uint32_t multiple = n / divisor * divisor;
    const ganfast::Divider divider(divisor);
    for (const uint32_t m : {n, multiple, multiple - (multiple > 0), 0x7fffffffu}) {
      if (divider.quotient(m) != m / divisor) return 1;
    }
  }
}
"""


def exit_code(code: str, folder: Path) -> int:
    """Compile a program with the emulator and run it."""
    if not emulated_cuda.can_build():
        missing("cuda", "the emulator needs Linux and a C++ compiler")
    (folder / "program.cpp").write_text(code)
    command = [emulated_cuda.COMPILER, *emulated_cuda.FLAGS, f"-I{TESTS / 'emulator'}", f"-I{CSRC}"]
    command += [f"-isystem{path}" for path in emulated_cuda.includes()]
    command += [str(folder / "program.cpp"), "-o", str(folder / "program")]
    subprocess.run(command, check=True)
    return subprocess.run([str(folder / "program")]).returncode


@pytest.mark.slow
@pytest.mark.parametrize("reason", BROKEN_KERNELS)
def test_the_emulator_refuses_broken_kernels(tmp_path, reason):
    code = BROKEN.replace("KERNEL", BROKEN_KERNELS[reason]).replace("REASON", reason)
    assert exit_code(code, tmp_path) == 0


def test_division_by_multiplication(tmp_path):
    assert exit_code(DIVISION, tmp_path) == 0


def benchmark(name: str) -> ModuleType:
    """Import a script of benchmarks/."""
    specification = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_readme_has_the_launches_of_the_launch_configuration():
    if not emulated_cuda.can_build():
        missing("cuda", "the emulator needs Linux and a C++ compiler")
    script = benchmark("cuda_launch_table")
    readme = script.README.read_text()
    assert script.with_table(readme) == readme, f"run {script.__file__} --write"


def test_the_readme_has_every_setting():
    if not emulated_cuda.can_build():
        missing("cuda", "a C++ compiler makes a library of the settings")
    readme = (CUDA / "batch_norm_act/README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (-?\d+) \|", readme.partition("## Settings")[2], re.MULTILINE)
    defaults = benchmark("tune_cuda").settings_alone().current()
    assert {name: int(value) for name, value in rows} == defaults


def test_tuning_without_a_gpu(tmp_path, capsys):
    if not emulated_cuda.can_build():
        missing("cuda", "a C++ compiler makes a library of the settings")
    out = tmp_path / "measured.jsonl"
    arguments = ["--dry-run", "--only", "pdl", "row_bytes", "--out", str(out)]
    assert benchmark("tune_cuda").main(arguments) == 0
    assert "| row_bytes | 128 | 128 | 1.000 |" in capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {json.dumps(line["changed"]) for line in lines} == {
        "{}", '{"pdl": 0}', '{"row_bytes": 64}', '{"row_bytes": 256}'
    }  # fmt: skip
    assert len(lines) == 4 * 4 * 2 * 2 * 3  # settings, layers, layouts, dtypes and ops


def test_tuning_keeps_what_is_faster_and_stops_in_time():
    tune = benchmark("tune_cuda")
    settings, out = tune.settings_alone(), io.StringIO()

    def time_us(case):
        chosen = settings.current()
        return (
            10.0 - chosen["wanted_items"] * (1 + chosen["pdl"]) / 10 + abs(chosen["threads"] - 256)
        )

    cases = [tune.Case("first", []), tune.Case("second", [])]
    gains = tune.Tuner(settings, cases, time_us, out, 1.0).tune(tune.CANDIDATES)
    assert gains["wanted_items"] == (4, 8, pytest.approx(9.2 / 8.4))
    assert gains["pdl"][1] == 1
    assert gains["threads"][1] == 256
    assert set(gains) == set(tune.CANDIDATES)
    assert 'GANFAST_CUDA="wanted_items=8"' in tune.table(gains)
    settings.choose({})
    assert tune.Tuner(settings, cases, time_us, out, 0.0).tune(tune.CANDIDATES) == {}
    with pytest.raises(ValueError, match="no setting 'nonsense'"):
        settings.choose({"nonsense": 1})


class Resources(NamedTuple):
    """What ptxas says of one kernel."""

    kernel: str
    architecture: str
    stack_bytes: int
    spilled_bytes: int
    registers: int
    shared_bytes: int


def compile_report(source: Path) -> str:
    """Compile the kernels of a file for both architectures; return what ptxas says of them.

    The report is kept beside the emulator's objects until a source changes.
    """
    state = hashlib.sha256(source.read_bytes())
    for header in sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cuh")):
        state.update(header.read_bytes())
    folder = emulated_cuda.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / f"{source.stem}.{state.hexdigest()[:16]}.ptxas"
    if not report.exists():
        for old in folder.glob(f"{source.stem}.*.ptxas"):
            old.unlink()
        command = ["nvcc", "-O3", "-std=c++20", "-fatbin", "-Xptxas=-v", "-Werror=all-warnings"]
        command += [f"-I{CSRC}"]
        command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90")]
        for path in emulated_cuda.includes():
            command += ["-isystem", str(path)]
        command += [str(source), "-o", os.devnull]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        unfinished = report.with_suffix(f".{os.getpid()}")  # another worker may read
        unfinished.write_text(result.stderr)
        unfinished.rename(report)
    return report.read_text()


ENTRY = re.compile(
    r"Compiling entry function '(\S+)' for '(\S+)'"
    r".*?(\d+) bytes stack frame, (\d+) bytes spill stores"
    r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
    re.DOTALL,
)


def kernels_of(source: Path) -> list[Resources]:
    """Return the kernels of a file, each once an architecture."""
    if shutil.which("nvcc") is None:
        missing("cuda", "there is no nvcc")
    report = compile_report(source)
    kernels = [
        Resources(name, sm, *(int(n or 0) for n in numbers))
        for name, sm, *numbers in ENTRY.findall(report)
    ]
    assert len(kernels) == report.count("Compiling entry function")
    return kernels


@pytest.mark.slow
@pytest.mark.parametrize("source", KERNELS, ids=lambda p: p.stem)
def test_no_kernel_uses_local_memory(source):
    kernels = kernels_of(source)
    assert {kernel.architecture for kernel in kernels} == {"sm_80", "sm_90"}
    for kernel in sorted(kernels, key=lambda k: -k.registers):
        print(*kernel)
    assert not [kernel for kernel in kernels if kernel.spilled_bytes or kernel.stack_bytes]


@pytest.mark.slow
def test_kernels_are_few():
    """Each costs every user who builds the package a tenth of a second an architecture."""
    assert sum(len(kernels_of(source)) for source in KERNELS) <= 300
