"""Checkpoints and measurements on disk: whole or absent, never in between, never code."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ganfast.training import CheckpointError, load_checkpoint, load_newest, save_checkpoint
from ganfast.training.metrics import COLUMNS, MetricsFile


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 100_000_000):
        path = save_checkpoint(tmp_path, step, {"value": torch.tensor(step)})
    assert path.name == "checkpoint-100000000.pt"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-00000010.pt",
        "checkpoint-100000000.pt",
    ]
    assert load_newest(tmp_path)[1]["value"] == 100_000_000


def test_a_failed_write_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]


def test_a_checkpoint_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_at_sync = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        names_at_sync.append(sorted(p.suffix for p in tmp_path.iterdir()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save_checkpoint(tmp_path, 1, {})
    assert names_at_sync[0] == [".partial"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_skipped_by_name(tmp_path: Path, share: float) -> None:
    save_checkpoint(tmp_path, 1, {"value": torch.ones(1000)})
    newest = save_checkpoint(tmp_path, 2, {"value": torch.ones(1000)})
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(len(whole) * share)])
    with pytest.warns(UserWarning, match=r"skipped .*checkpoint-00000002\.pt"):
        path, state = load_newest(tmp_path)
    assert (path.name, state["step"]) == ("checkpoint-00000001.pt", 1)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*checkpoint-00000002\.pt"):
        load_newest(tmp_path)


def test_an_altered_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"value": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    pattern = torch.arange(500.0, 501.0).numpy().tobytes()
    content[content.index(pattern)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|checksum"):
        load_checkpoint(path)


def test_a_folder_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-latest.pt").write_text("another program's")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            load_newest(folder)


class Payload:
    """Run code when unpickled, as a hostile checkpoint would."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


def test_checkpoints_never_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint-00000001.pt"
    torch.save({"format": 1, "step": 1, "payload": Payload()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="no ganfast training checkpoint"):
        load_checkpoint(path)


def test_metrics_drop_later_and_broken_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    header = ",".join(COLUMNS)
    path.write_text(f"{header}\n2,1,1,1,1,1\n4,1,1,1,1,1\n6,1,1,1,1,1\n8,1,1\n")
    metrics = MetricsFile(path)
    metrics.truncate(4)
    assert path.read_text().splitlines() == [header, "2,1,1,1,1,1", "4,1,1,1,1,1"]
    metrics.append(dict.fromkeys(COLUMNS, 6))
    assert metrics.columns()["step"] == [2, 4, 6]
    assert path.read_text().splitlines()[-1] == "6,6,6,6,6,6"
