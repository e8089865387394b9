"""Two commands never write into each other's files, and nothing that lies there is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT

for package in ("torchvision", "matplotlib", "tqdm", "safetensors", "scipy", "sklearn"):
    pytest.importorskip(package)

from ganfast.cli import main  # noqa: E402
from ganfast.training import load_newest  # noqa: E402
from ganfast.training.output import locked, set_aside, write_whole  # noqa: E402

TINY = ["--image-size", "16", "--width", "4", "--latent", "6", "--batch-size", "8"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders are locked by fcntl")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 16, 16), dtype=np.uint8)
    np.savez(out / "images.npz", x=images, y=np.arange(20) % 2)
    words = ["--data", f"npz:{out / 'images.npz'}", "--steps", "2", "--quality-every", "0", *TINY]
    assert main(["train", "--out", str(out / "run"), *words]) == 0
    return out / "run"


def commands(run: Path) -> dict[str, list[str]]:
    """Return every command that writes to a folder, without its --out."""
    data = ["--data", f"npz:{run.parent / 'images.npz'}"]
    return {
        "train": ["train", *data, "--steps", "1", *TINY],
        "train --resume": ["train", "--resume", "--steps", "9"],
        "sample": ["sample", str(run), "--count", "1"],
        "classify": ["classify", *data, "--image-size", "16", "--labels", "4", "--steps", "1",
                     "--batch-size", "4"],
        "augment": ["augment", *data, "--labels", "4"],
        "anomaly": ["anomaly", *data, "--image-size", "16", "--normal", "0"],
        "anomaly --all-normal": ["anomaly", *data, "--image-size", "16", "--all-normal"],
        "edit": ["edit", "project", str(run), str(run / "samples.png"), "--steps", "1"],
    }  # fmt: skip


@pytest.mark.parametrize("name", commands(Path()))
def test_a_folder_in_use_is_refused(name: str, trained: Path, tmp_path: Path, capsys: Any) -> None:
    out = trained if name == "train --resume" else tmp_path
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    with locked(out):
        capsys.readouterr()
        assert main([*commands(trained)[name], "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"cannot write to --out {out}: " in lines[0]
    assert f"process {os.getpid()} writes there: wait for it, or give another folder" in lines[0]
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_sample_and_edit_leave_the_runs_files_alone(trained: Path) -> None:
    grid = (trained / "samples.png").read_bytes()
    for run in (trained, next(trained.glob("checkpoint-*"))):
        assert main(["sample", str(run), "--count", "1"]) == 0
        assert (
            main(["edit", "project", str(run), str(trained / "samples.png"), "--steps", "1"]) == 0
        )
    assert (trained / "samples.png").read_bytes() == grid
    for folder, name in (("sample", "interpolation.gif"), ("edit", "latents.npy")):
        assert (trained / folder / name).exists()
        assert (trained / folder / "earlier-1" / name).exists()
        assert not (trained / folder / ".lock").exists()
    assert load_newest(trained)[1]["step"] == 2


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ganfast.training.output import locked\n"
        "with locked(Path(sys.argv[1])): print('has it', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"has it\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} writes there"):
            locked(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
    with locked(tmp_path):
        pass


def test_files_are_moved_to_a_folder_of_their_own(tmp_path: Path) -> None:
    for number in (1, 2):
        for name in ("a.png", "b.json", "mine.txt"):
            (tmp_path / name).write_text(str(number))
        set_aside(tmp_path, ("*.png", "a.*", "b.json"))
        assert sorted(p.name for p in (tmp_path / f"earlier-{number}").iterdir()) == [
            "a.png", "b.json",
        ]  # fmt: skip
        assert (tmp_path / f"earlier-{number}" / "a.png").read_text() == str(number)
    set_aside(tmp_path, ("*.png",))
    assert not (tmp_path / "earlier-3").exists()
    assert (tmp_path / "mine.txt").exists()


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    (tmp_path / "link").symlink_to(path)
    write_whole(tmp_path / "link", b"first")
    assert path.read_bytes() == b"first"
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, b"")
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), b"x" * 10_000)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]
