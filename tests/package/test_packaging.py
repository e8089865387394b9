"""The source distribution has all it takes; the wheel works without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

pytest.importorskip("setuptools")
pytest.importorskip("packaging")


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "GANFAST_BUILD": "none", **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tracked() -> list[str]:
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "-z"]
        return subprocess.check_output(command, text=True).rstrip("\0").split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of what git tracks, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    for name in tracked():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
            (tree / name).chmod((ROOT / name).stat().st_mode)
    call(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=tree)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        # The filter came with 3.11.4, and from 3.12 on its absence is warned of.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        file.extractall(folder, **safe)
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """A wheel of the source distribution, made without a compiler."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    call(*command, "-w", unpacked.parent, ".", cwd=unpacked)
    (found,) = unpacked.parent.glob("*.whl")
    return found


def test_the_source_distribution_holds_every_tracked_file(unpacked):
    missing = [name for name in tracked() if not (unpacked / name).exists()]
    assert not missing


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (points,) = (n for n in names if n.endswith("entry_points.txt"))
        assert "ganfast = ganfast.cli:main" in file.read(points).decode()
    assert {name.partition("/")[0] for name in names} == {
        "ganfast",
        f"{wheel.name.split('-')[0]}-{wheel.name.split('-')[1]}.dist-info",
    }
    assert "ganfast/py.typed" in names
    modules = {n for n in tracked() if n.startswith("ganfast/") and n.endswith(".py")}
    assert modules <= set(names)


@pytest.mark.slow
def test_the_wheel_works_without_the_extension(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    call(*command, "--target", tmp_path / "site", wheel, cwd=tmp_path)
    code = (
        "import ganfast, torch, pathlib\n"
        "assert pathlib.Path(ganfast.__file__).is_relative_to(pathlib.Path.cwd() / 'site')\n"
        "assert ganfast.backend.available('cpu') == ('eager',)\n"
        "layer = ganfast.nn.BatchNorm2d(3, activation='relu')\n"
        "layer(torch.randn(4, 3, 5, 5)).sum().backward()\n"
        "print(layer.num_batches_tracked.item())\n"
    )
    assert call(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH="site").strip() == "1"
    said = call(sys.executable, "-m", "ganfast", "info", cwd=tmp_path, PYTHONPATH="site")
    assert "CPU part: missing" in said
    assert "--no-binary ganfast" in said
