"""The build: what setup.py chooses, finds and records. Nothing is compiled here."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

from ganfast.ops import extension

pytest.importorskip("packaging")

LIBRARY = extension.library("cpu").name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the build needs, with C++ that compiles in no time."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "ganfast"
    package.mkdir()
    shutil.copy(ROOT / "ganfast" / "_version.py", package)
    (package / "__init__.py").write_text("from ganfast._version import __version__\n")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "module.cpp").write_text('extern "C" int answer() { return 42; }\n')
    return tmp_path


def build(tree: Path, mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tree, text=True,
        capture_output=True, env={**os.environ, "GANFAST_BUILD": mode, **environment},
    )  # fmt: skip


def said_of(tree: Path, part: str) -> str:
    lines = (tree / "ganfast" / "_build_failure.txt").read_text().splitlines()
    return next((line for line in lines if line.startswith(f"{part}: ")), "")


def needs_compiler() -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler")


def test_cpu_builds_one_library_without_python_in_its_name(tree):
    needs_compiler()
    result = build(tree, "cpu")
    assert result.returncode == 0, result.stderr
    assert [p.name for p in (tree / "ganfast").glob("*.so")] == [LIBRARY]
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(tree / "ganfast" / LIBRARY)],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert " Py" not in symbols


def test_the_real_library_does_not_depend_on_python():
    library = ROOT / "ganfast" / LIBRARY
    if not library.exists() or shutil.which("nm") is None:
        pytest.skip("the extension is not built in place")
    command = ["nm", "-D", "--undefined-only", str(library)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "at5empty" in symbols or "empty_like" in symbols
    assert not [line for line in symbols.splitlines() if line.split()[-1].startswith("Py")]


def test_none_builds_nothing_and_says_so(tree):
    (tree / "ganfast" / LIBRARY).write_text("an old build")
    assert build(tree, "none").returncode == 0
    assert not list((tree / "ganfast").glob("*.so"))
    assert "GANFAST_BUILD=none" in said_of(tree, "_native")


def test_auto_survives_code_that_does_not_compile(tree):
    needs_compiler()
    (tree / "csrc" / "module.cpp").write_text("this is not C++\n")
    result = build(tree, "auto", CUDA_HOME="/nowhere")
    assert result.returncode == 0, result.stderr
    assert said_of(tree, "_native")
    assert not (tree / "ganfast" / LIBRARY).exists()


def test_an_explicit_request_fails_where_it_cannot_be_met(tree):
    needs_compiler()
    (tree / "csrc" / "module.cpp").write_text("this is not C++\n")
    result = build(tree, "cpu")
    assert result.returncode != 0
    assert "GANFAST_BUILD=cpu: cannot build ganfast._native" in result.stderr


def test_no_compiler_is_named(tree):
    result = build(tree, "auto", CXX="no-such-compiler", CUDA_HOME="/nowhere")
    assert result.returncode == 0, result.stderr
    assert "install g++ or set CXX" in said_of(tree, "_native")


def test_auto_builds_cuda_only_for_a_gpu_that_is_there(tree):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert build(tree, "auto", CXX="no-such-compiler").returncode == 0
    if torch.version.cuda is not None:
        assert "no GPU is visible; GANFAST_BUILD=cuda builds" in said_of(tree, "_native_cuda")
        result = build(tree, "cuda", CUDA_HOME="/nowhere")
        assert result.returncode != 0
        assert "install the CUDA toolkit or set CUDA_HOME" in result.stderr


def test_windows_is_told_why_it_has_no_kernels(tree):
    code = (
        "import sys, torch.utils.cpp_extension\n"
        "sys.platform, sys.argv = 'win32', ['setup.py', '--name']\n"
        "import setup"
    )
    environment = {**os.environ, "GANFAST_BUILD": "auto"}
    subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, check=True)
    assert "MSVC has no vector extensions" in said_of(tree, "_native")


@pytest.mark.parametrize(("said", "expected"), [("g++ 12.2.0", True), ("clang 14", False)])
def test_clang_goes_without_openmp(tree, tmp_path_factory, said, expected):
    needs_compiler()
    compiler = tmp_path_factory.mktemp("bin") / "compiler"
    version = f'*--version) echo "{said}";;'
    compiler.write_text(f'#!/bin/sh\ncase "$*" in {version} *) exec c++ "$@";; esac')
    compiler.chmod(0o755)
    result = build(tree, "cpu", CXX=str(compiler))
    assert result.returncode == 0, result.stderr
    assert ("-fopenmp" in result.stdout) == expected


def test_unknown_mode_is_refused(tree):
    result = build(tree, "fast")
    assert result.returncode != 0
    assert "must be auto, cpu, cuda or none, got 'fast'" in result.stderr


def test_toolkit_is_found_behind_a_wrapper_script(tree, tmp_path_factory):
    toolkit = tmp_path_factory.mktemp("toolkit") / "cuda-99"
    real = toolkit / "bin" / "nvcc"
    real.parent.mkdir(parents=True)
    real.write_text(
        "#!/bin/sh\necho '#$ _HERE_='$(dirname $0) >&2\necho '#$ TOP='$(dirname $0)/.. >&2\n"
    )
    wrapper = tmp_path_factory.mktemp("bin") / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    for script in (real, wrapper):
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    code = (
        "import sys; sys.argv = ['setup.py', '--name']\nimport setup\nprint(setup.find_cuda_home())"
    )
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GANFAST_BUILD": "none"}
    environment.pop("CUDA_HOME", None)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == str(toolkit)


def test_a_library_that_does_not_load_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    monkeypatch.setattr(extension, "BUILD_FAILURE", tmp_path / "_build_failure.txt")
    monkeypatch.delenv("GANFAST_NATIVE", raising=False)
    part = extension._load("cpu", "ganfast_build_description")
    assert part == (None, "not built (no build was tried)")
    (tmp_path / "_build_failure.txt").write_text("_native: no C++ compiler\n")
    assert "no C++ compiler" in extension._load("cpu", "x").reason
    (tmp_path / LIBRARY).write_text("not a library")
    part = extension._load("cpu", "ganfast_build_description")
    assert part.description is None
    assert f"does not load with torch {torch.__version__}" in part.reason


def test_a_library_for_another_torch_is_named_and_never_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    monkeypatch.setattr(extension, "BUILD_FAILURE", tmp_path / "_build_failure.txt")
    monkeypatch.delenv("GANFAST_NATIVE", raising=False)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail(f"{path} is loaded"))
    for release in ("3_11", "3_9", "2_8"):
        (tmp_path / f"_native_torch{release}.so").write_text("a library")
    (tmp_path / "_native_cuda_torch3_12.so").write_text("a library")
    reason = f"built for torch 2.8, 3.9, 3.11, and this is torch {torch.__version__}"
    assert extension._load("cpu", "x") == (None, reason)
    assert "torch 3.12, and" in extension._load("cuda", "x").reason


def test_an_installation_with_libraries_for_other_torches_falls_back(tmp_path):
    package = tmp_path / "ganfast"
    shutil.copytree(ROOT / "ganfast", package, ignore=shutil.ignore_patterns("*.so", "*.txt"))
    (package / "_native_torch2_8.so").write_text("would not load")
    result = subprocess.run(
        [sys.executable, "-m", "ganfast", "info"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "CPU part: missing: built for torch 2.8, and this is torch" in result.stdout
    assert "build what is missing with: pip install" in result.stdout
    assert "batch_norm_act_train                   cpu   eager" in result.stdout
