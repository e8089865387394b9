"""What `make gpu-report` and `make wheel` do, without a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT
from test_build import needs_compiler, tree  # noqa: F401

from ganfast.cli import bench as bench_command
from ganfast.cli import main
from ganfast.cli import verify as verify_command

BACKGROUND = (
    "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)"
)
"""Start a process that would run on, and say which."""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


gpu_report, gpu_build, build_wheel = map(script, ("gpu_report", "gpu_build", "build_wheel"))


def part(code: str, limit_s: float = 30, name: str = "one", **options):
    return gpu_report.Part(name, [sys.executable, "-c", code], limit_s, least_s=0, **options)


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that has ended may still wait for its parent to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ended(pid: int) -> None:
    end = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < end, "what a part has started runs on"
        time.sleep(0.01)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


@needs_proc
@pytest.mark.parametrize("ending", ["time.sleep(600)", "sys.exit(3)", "pass"])
def test_what_a_part_has_started_ends_with_it(tmp_path, ending):
    log = tmp_path / "log.txt"
    said = gpu_report.run(part(f"{BACKGROUND}; {ending}"), log, 2)
    expected = {"time.sleep(600)": "stopped after 2 s", "sys.exit(3)": "exit code 3", "pass": ""}
    assert said == expected[ending]
    wait_until_ended(int(log.read_text().splitlines()[2]))


@needs_proc
def test_a_report_that_is_ended_ends_its_part(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import gpu_report\n"
        f"code = {BACKGROUND!r} + '; p.wait()'\n"
        "part = gpu_report.Part('one', [sys.executable, '-c', code], 60)\n"
        "gpu_report.parts = lambda out, device: [part]\n"
        f"sys.argv = ['gpu_report.py', {str(tmp_path)!r}]\n"
        "sys.exit(gpu_report.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    log = tmp_path / "log.txt"
    while not log.exists() or log.read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    wait_until_ended(int(log.read_text().splitlines()[2]))


def test_a_part_that_counts_fails_the_report_when_it_is_stopped(tmp_path, capsys):
    endless = "import time; print('so far', flush=True); time.sleep(600)"
    for counts in (False, True):
        chosen = [part(endless, 1, counts=counts), part("print('next')", name="two")]
        assert gpu_report.report(chosen, tmp_path, 60) == counts
        printed = capsys.readouterr().out
        assert "== one: stopped after 1 s" in printed
        assert "so far" in printed
        assert "== two: done" in printed
        assert ("FAILED: one" if counts else "no part failed") in printed


def test_parts_for_which_no_time_is_left_are_left_out(tmp_path, capsys):
    later = part("print('hello')", name="two")._replace(least_s=20)
    assert gpu_report.report([part("pass"), later], tmp_path, gpu_report.GRACE_S + 15) == 0
    assert "no part failed; left out: two" in capsys.readouterr().out
    assert "== two: left out" in (tmp_path / "report.txt").read_text()


def test_values_come_first_then_headline_timings(tmp_path):
    names = [p.name for p in gpu_report.parts(tmp_path, "cuda")]
    in_order = ["build", "machine", "verify-native", "float32", "step", "tests-native"]
    assert names[: len(in_order)] == in_order
    assert names.index("tests-native") < names.index("tests-triton")
    assert all("compile" in name for name in names[-2:])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_part_is_a_command_that_exists(tmp_path, monkeypatch, device):
    read = []
    for command in (bench_command, verify_command):
        monkeypatch.setattr(command, "run", lambda args: read.append(args) or 0)
    files = []
    for one in gpu_report.parts(tmp_path, device):
        program, *arguments = one.command
        assert Path(program).exists() or program == "sh"
        if arguments[:2] == ["-m", "ganfast"] and arguments[2] != "info":
            assert main(arguments[2:]) == 0, one
            files.append(read[-1].json)
            assert read[-1].device == device
        elif arguments[:1] != ["-m"]:
            assert (ROOT / arguments[0]).is_file()
    assert {Path(file).parent for file in files} == {tmp_path}


@pytest.mark.slow
def test_the_parts_run_without_a_gpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu_report.py", str(tmp_path), "--device", "cpu"]
    result = subprocess.run(
        [*command, "--only", "verify-eager", "losses"], cwd=ROOT, capture_output=True, text=True
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("== ")]
    assert [line.split(",")[0] for line in lines][1:] == ["== losses: done"]
    assert lines[0].startswith("== verify-eager: ")
    assert result.stdout.startswith((tmp_path / "report.txt").read_text().splitlines()[0])
    assert (tmp_path / "bench.jsonl").read_text().count("\n") == 4
    result = subprocess.run([*command, "--only", "everything"], cwd=ROOT, capture_output=True)
    assert result.returncode == 2
    assert b"--only everything: the parts are machine, verify-eager" in result.stderr


@pytest.mark.slow
def test_the_tests_of_the_parts_are_those_that_launch_kernels(tmp_path):
    chosen = {}
    for one in gpu_report.parts(tmp_path, "cuda"):
        if one.name.startswith("tests"):
            command = [w for w in one.command if not w.startswith("-n") and not w.isdecimal()]
            said = subprocess.run(
                [*command, "--collect-only"], cwd=ROOT, capture_output=True, text=True,
                env={**os.environ, "GANFAST_REQUIRE": "cuda"},
            )  # fmt: skip
            assert said.returncode == 0, said.stdout[-2000:]
            chosen[one.name] = [line for line in said.stdout.splitlines() if "::" in line]
    native, triton = chosen["tests-native"], chosen["tests-triton"]
    assert not set(native) & set(triton)
    assert not [line for line in native + triton if "cpu" in line or "test_cuda_kernels" in line]
    assert not [line for line in triton if "test_triton_code" in line]
    assert len(triton) > 100
    for wanted in (
        "test_batch_norm_act.py::test_any_layout[native-cuda", "test_step.py::test_captured_steps",
        "test_distributed_training.py::test_a_group_of_one_process", "test_verify.py::",
    ):  # fmt: skip
        assert [line for line in native if wanted in line], wanted
    assert [line for line in triton if "test_fuzz.py::test_train[triton-cuda]" in line]


@pytest.fixture
def built_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A copy of what the build needs, in which gpu_build works."""
    monkeypatch.setattr(gpu_build, "ROOT", tree)
    for name in gpu_build.libraries():
        (tree / "ganfast" / name).write_bytes(b"elf" + gpu_build.build_id())
    return tree


def test_a_library_of_other_sources_is_not_used(built_tree):
    assert "was made" not in gpu_build.why_not_usable()
    (built_tree / "csrc" / "module.cpp").write_text('extern "C" int answer() { return 43; }\n')
    name = gpu_build.libraries()[0]
    assert f"{name} was made from other sources" in gpu_build.why_not_usable()
    (built_tree / "ganfast" / name).unlink()
    assert gpu_build.why_not_usable() == f"{name} is not there"


def test_a_library_for_another_torch_is_not_used(built_tree, monkeypatch):
    release = ".".join(torch.__version__.split(".")[:2])
    monkeypatch.setattr("torch.__version__", f"{release}.99")
    assert "for another torch" in gpu_build.why_not_usable()
    monkeypatch.setattr("torch.__version__", "2.99.0")
    assert gpu_build.why_not_usable() == "_native_torch2_99.so is not there"


def test_libraries_come_out_of_a_wheel_of_these_sources(built_tree, capsys):
    package, dist = built_tree / "ganfast", built_tree / "dist"
    dist.mkdir()
    made = {path.name: path.read_bytes() for path in package.glob("*.so")}
    for age in ("new", "old"):
        with zipfile.ZipFile(dist / f"ganfast-{age}.whl", "w") as wheel:
            for name, content in made.items():
                wheel.writestr(f"ganfast/{name}", content if age == "new" else b"old")
    for name in made:
        (package / name).write_bytes(b"of before")
    gpu_build.take_from_wheel()
    assert {path.name: path.read_bytes() for path in package.glob("*.so")} == made
    (built_tree / "csrc" / "module.cpp").write_text("changed\n")
    (package / gpu_build.libraries()[0]).unlink()
    gpu_build.take_from_wheel()
    assert not (package / gpu_build.libraries()[0]).exists()
    assert "ganfast-new.whl was made from other sources" in capsys.readouterr().out


@pytest.mark.parametrize("usable", [True, False])
def test_nothing_is_built_where_both_parts_load(monkeypatch, usable, capsys):
    run = []
    monkeypatch.setattr(gpu_build, "why_not_usable", lambda: "" if usable else "too old")
    monkeypatch.setattr(gpu_build, "take_from_wheel", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(gpu_build.subprocess, "run", lambda *a, **k: run.append(k["env"]) or done)
    assert gpu_build.main() == 0
    assert bool(run) != usable
    assert ("there already" in capsys.readouterr().out) == usable
    if run:
        assert run[0]["TORCH_CUDA_ARCH_LIST"] == "9.0"
        assert run[0]["GANFAST_BUILD"] == "cuda"


@pytest.fixture
def cuda_tree(built_tree: Path) -> Path:
    """A tree of which both parts compile in no time."""
    needs_compiler()
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    (built_tree / "csrc" / "module.cu").write_text('extern "C" int cuda_answer() { return 42; }\n')
    return built_tree


@pytest.mark.slow
def test_both_parts_are_built_at_once_and_marked(cuda_tree):
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", "2"], cwd=cuda_tree,
        env=gpu_build.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for name in gpu_build.libraries():
        assert gpu_build.build_id() in (cuda_tree / "ganfast" / name).read_bytes()
        parts = f"temp*/ganfast.{name.removesuffix('.so')}/csrc/module.o"
        assert list((cuda_tree / "build").glob(parts))


@pytest.mark.slow
def test_a_wheel_brings_both_parts_and_leaves_the_tree_alone(cuda_tree, monkeypatch, capfd):
    monkeypatch.setattr(build_wheel, "ROOT", cuda_tree)
    monkeypatch.setenv("GANFAST_BUILD", "cuda")
    before = {path: path.read_bytes() for path in (cuda_tree / "ganfast").iterdir()}
    for builds in (1, 2):  # the second makes no object anew
        build_wheel.build_one(cuda_tree / "dist")
        said = capfd.readouterr().out
        compiled, reused = said.count("[1/1]"), said.count("no work to do")
        assert (compiled, reused) == ((2, 0) if builds == 1 else (0, 2))
    assert {path: path.read_bytes() for path in (cuda_tree / "ganfast").iterdir()} == before
    for library in gpu_build.libraries():
        (cuda_tree / "ganfast" / library).unlink()
    gpu_build.take_from_wheel()
    for library in gpu_build.libraries():
        assert gpu_build.build_id() in (cuda_tree / "ganfast" / library).read_bytes()
