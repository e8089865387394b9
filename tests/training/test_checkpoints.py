"""Checkpoints and measurements on disk: whole or absent, never in between, never code."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file

from ganfast.training import CheckpointError, load_checkpoint, load_newest, save_checkpoint
from ganfast.training.metrics import COLUMNS, Table


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (1, 2, 10, 100_000_000):
        path = save_checkpoint(tmp_path, step, {"value": torch.tensor(step)}, keep=keep)
    assert path.name == "checkpoint-100000000.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"checkpoint-{step:08d}.safetensors" for step in (1, 2, 10, 100_000_000)[-keep:]
    ]
    assert load_newest(tmp_path)[1]["value"] == 100_000_000


def test_a_later_checkpoint_does_not_count_as_one_of_the_last(tmp_path: Path) -> None:
    for step in (30, 10, 20):  # 30 is damaged, say, and the run went on from before it
        save_checkpoint(tmp_path, step, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"checkpoint-{step:08d}.safetensors" for step in (10, 20, 30)
    ]


def test_a_failed_write_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001.safetensors"]


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
    with pytest.warns(UserWarning, match=r"skipped .*checkpoint-00000002\.safetensors"):
        path, state = load_newest(tmp_path)
    assert (path.name, state["step"]) == ("checkpoint-00000001.safetensors", 1)
    path.unlink()
    with pytest.raises(
        CheckpointError, match=r"no whole checkpoint.*checkpoint-00000002\.safetensors"
    ):
        load_newest(tmp_path)


def test_an_altered_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"value": torch.arange(1000.0)})
    whole = path.read_bytes()
    for pattern in (torch.tensor(500.0).numpy().tobytes(), b'\\"step\\", 1'):  # a weight, the state
        content = bytearray(whole)
        content[content.index(pattern) + len(pattern) - 1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="checksum does not match"):
            load_checkpoint(path)


def test_a_folder_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-latest.safetensors").write_text("another program's")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            load_newest(folder)


def test_a_checkpoint_returns_what_it_was_given(tmp_path: Path) -> None:
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {
        "generator": {"main.0.weight": last, "main.1.weight": torch.randn(3).bfloat16()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": last * 2}},
            "param_groups": [{"lr": 1e-4, "betas": (0.5, 0.999), "fused": None, "params": [0]}],
        },
        "rng": torch.get_rng_state(),
        "empty": torch.empty(0, 3),
        "flag": torch.tensor(True),
        "infinite": float("inf"),
        "nothing": None,
    }
    found = load_checkpoint(save_checkpoint(tmp_path, 7, state))
    assert found.pop("step") == 7
    leaves, structure = _pytree.tree_flatten(state)
    found_leaves, found_structure = _pytree.tree_flatten(found)
    assert found_structure == structure
    for ours, theirs in zip(found_leaves, leaves, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
            assert torch.equal(ours, theirs)
        else:
            assert (type(ours), ours) == (type(theirs), theirs)


def test_any_reader_of_safetensors_finds_the_weights(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    path = save_checkpoint(tmp_path, 1, {"generator": {"main.0.weight": weight}})
    assert torch.equal(load_file(path)["generator.main.0.weight"], weight)


def test_what_a_checkpoint_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"options\.model is a Linear"):
        save_checkpoint(tmp_path, 1, {"options": {"model": torch.nn.Linear(1, 1)}})
    with pytest.raises(TypeError, match=r"two tensors .* a\.b"):
        save_checkpoint(tmp_path, 1, {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


class Payload:
    """Run code when unpickled, as a hostile checkpoint would."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


def test_checkpoints_never_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint-00000001.safetensors"
    torch.save({"format": 3, "step": 1, "payload": Payload()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="no ganfast training checkpoint"):
        load_checkpoint(path)


def test_metrics_drop_later_and_broken_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    header, values = ",".join(COLUMNS), ",1" * (len(COLUMNS) - 1)
    path.write_text(f"{header}\n2{values}\n4{values}\n6{values}\n8,1,1\n")
    metrics = Table(path)
    metrics.truncate(4)
    assert path.read_text().splitlines() == [header, f"2{values}", f"4{values}"]
    metrics.append(dict.fromkeys(COLUMNS, 6))
    assert metrics.columns()["step"] == [2, 4, 6]
    assert path.read_text().splitlines()[-1] == ",".join("6" * len(COLUMNS))
