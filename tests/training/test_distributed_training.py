"""``ganfast train`` in two processes: the numbers of one, and the files and words of one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT, TESTS

for package in ("torchvision", "matplotlib", "safetensors", "tqdm"):
    pytest.importorskip(package)

from ganfast.cli import main  # noqa: E402
from ganfast.cli import processes as cli_processes  # noqa: E402
from ganfast.models import dcgan  # noqa: E402
from ganfast.nn import GANLoss  # noqa: E402
from ganfast.training import (  # noqa: E402
    Batches,
    DataError,
    GANStep,
    ImageData,
    Processes,
    joined,
    load_newest,
)
from ganfast.training import processes as training_processes  # noqa: E402
from ganfast.training.processes import JoinedProcesses, Launch  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)
CHECKS = TESTS / "training" / "distributed_training_checks.py"
TINY = ["--image-size", "16", "--width", "4", "--latent", "6", "--log-every", "1"]
TINY += ["--device", "cpu", "--batch-size", "8"]


def start(*words: str | Path) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*torchrun, *map(str, words)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, error = process.communicate(timeout=300)
    assert process.returncode == code, out + error[-6000:]
    return out, error


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels)
    return ["--data", f"npz:{tmp_path / 'images.npz'}"]


def rows(out: Path) -> list[list[float]]:
    """Read the measurements, without the last columns, which are times."""
    with (out / "metrics.csv").open(newline="") as file:
        return [[float(value) for value in row[:5]] for row in list(csv.reader(file))[1:]]


def own_lines(text: str) -> list[str]:
    """Leave out what torchrun says."""
    return [line for line in text.splitlines() if line.startswith("ganfast:")]


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    out, error = finish(start(CHECKS, tmp_path))
    names = ("batches", "step", "gradients", "overflow", "pairing", "rollback", "stop")
    assert out.splitlines() == [f"{name} holds" for name in names]
    assert error == ""


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_two_and_back(data: list[str], tmp_path: Path) -> None:
    words = [*data, *TINY, "--sync-batch-norm", "--penalty", "1", "--ema", "0.9"]
    whole, changing = tmp_path / "whole", tmp_path / "changing"
    assert main(["train", *words, "--steps", "14", "--out", str(whole)]) == 0
    assert main(["train", *words, "--steps", "3", "--out", str(changing)]) == 0
    resume = ["train", "--resume", "--out", str(changing), "--steps"]
    printed, error = finish(start("-m", "ganfast", *resume, "11"))
    assert printed.splitlines() == [
        f"resuming from {changing / 'checkpoint-00000003.safetensors'}",
        f"training dcgan on {data[1]}: 40 images of 1x16x16, 11 steps of 8, on cpu, in 2 processes",
        f"trained 11 steps; see {changing / 'samples.png'}",
    ]
    assert error == ""
    assert main([*resume, "14"]) == 0
    assert sorted(p.name for p in changing.iterdir()) == [
        "checkpoint-00000011.safetensors", "checkpoint-00000014.safetensors",
        "losses.png", "metrics.csv", "samples.png",
    ]  # fmt: skip
    assert [row[0] for row in rows(changing)] == list(range(1, 15))
    for ours, theirs in zip(rows(changing), rows(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # float32, sums in another order
    found, expected = load_newest(changing)[1], load_newest(whole)[1]
    assert torch.equal(found["rng"], expected["rng"])
    assert found["batches"]["position"] == expected["batches"]["position"]
    parts: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (found[name], expected[name]) for name in ("generator", "discriminator")
    ]
    parts.append(tuple(s["step_state"]["average"]["generator"] for s in (found, expected)))
    for ours, theirs in parts:
        for name, value in theirs.items():
            # A step of Adam is 5e-4 long, whatever the size of a gradient.
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_batch_that_the_processes_do_not_divide(data: list[str], tmp_path: Path) -> None:
    words = [*data, *TINY[:-1], "7", "--out", tmp_path / "run"]
    out, error = finish(start("-m", "ganfast", "train", *words), 1)
    assert out == ""
    assert own_lines(error) == [
        "ganfast: error: batch size 7 is that of all processes together, and 2 processes do not "
        "divide it"
    ]
    assert "exitcode  : 2 " in error
    assert "[rank" not in error  # a traceback of a process
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(data: list[str], tmp_path: Path) -> None:
    words = [*data, *TINY, "--steps", "1000000", "--out", tmp_path / "run"]
    _, error = finish(start(CHECKS, "train", *words), 1)
    assert own_lines(error) == ["ganfast: error: image 7 cannot be read"]
    assert "[rank" not in error
    assert len(rows(tmp_path / "run")) <= 2


def test_a_process_that_fails_second_waits_until_the_first_has_spoken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = torch.distributed.HashStore()
    monkeypatch.setattr(training_processes, "_store", lambda: store)
    first = training_processes._fails_first.__wrapped__
    monkeypatch.setattr(training_processes, "_fails_first", first)  # as if in its own process
    said: list[str] = []

    def fail_second() -> None:
        with training_processes.one_reporter() as reports:
            said.append("the same" if reports else "nothing")

    second = threading.Thread(target=fail_second)
    with training_processes.one_reporter() as reports:
        assert reports
        second.start()
        time.sleep(0.3)
        said.append("why")
    second.join()
    assert said == ["why", "nothing"]


def test_a_process_has_failed_before_the_others_lose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(training_processes, "launch", lambda: Launch(0, 0, 2))
    monkeypatch.setattr(training_processes, "_store", lambda: None)
    monkeypatch.setattr(training_processes, "_fails_first", lambda: not events.append("failed"))
    group = {"init_process_group": None, "get_rank": 0, "get_world_size": 2}
    for name, value in group.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(
        torch.distributed, "destroy_process_group", lambda: events.append("group ended")
    )
    with pytest.raises(DataError), joined(torch.device("cpu")):
        raise DataError("image 7 cannot be read")
    assert events == ["failed", "group ended"]


@pytest.mark.slow
def test_sigterm_saves_and_the_run_can_go_on(data: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*data, *TINY, "--steps", "1000000", "--out", out]
    with start("-m", "ganfast", "train", *words) as process:
        deadline = time.monotonic() + 120
        while not (out / "metrics.csv").exists() or len(rows(out)) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # A batch system signals all, and torchrun then signals its processes again.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for child in children.read_text().split() if children.exists() else []:
            os.kill(int(child), signal.SIGTERM)
        time.sleep(0.3)  # two signals at once would be one
        process.send_signal(signal.SIGTERM)
        _, error = finish(process, 1)
    state = load_newest(out)[1]
    assert own_lines(error) == [
        "ganfast: finishing the step, writing a checkpoint; press again to end at once",
        f"ganfast: interrupted; saved a checkpoint at step {state['step']} in {out}; "
        "continue with --resume",
    ]
    assert "[rank" not in error
    further = state["step"] + 2
    assert main(["train", "--resume", "--out", str(out), "--steps", str(further)]) == 0
    assert [row[0] for row in rows(out)] == list(range(1, further + 1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_group_of_one_process_changes_no_number(device: str) -> None:
    """On a GPU: NCCL inside a captured step."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        found = []
        for processes in (Processes(), JoinedProcesses()):
            torch.manual_seed(0)
            gan = dcgan(image_size=16, channels=1, width=4, latent=6)
            adams = [torch.optim.Adam(m.to(device).parameters(), 1e-3) for m in gan[:2]]
            step = GANStep(
                *gan[:2], *adams, GANLoss(), gan.latent, penalty=1.0, processes=processes
            )
            real = torch.rand(8, 1, 16, 16, device=device) * 2 - 1
            found.append([value.item() for _ in range(8) for value in step(real)])
            assert ("captured: yes" in step.explain()) == (device == "cuda")
    finally:
        torch.distributed.destroy_process_group()
    assert found[1] == pytest.approx(found[0], rel=0.0 if device == "cpu" else 1e-4)


def test_processes_must_divide_the_batch() -> None:
    processes = Processes()
    processes.count = 3
    data = ImageData("some", torch.zeros(8, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(
        DataError, match=r"batch size 8 is that of all .* 3 processes do not divide"
    ):
        Batches(data, 8, processes=processes)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:1", "--device cuda:1 is one GPU, but there are 4 processes"),
        ("cuda", "process 3 finds no GPU of its own: this machine has 2; start fewer"),
    ],
)
def test_every_process_needs_a_gpu_of_its_own(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], device: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(cli_processes, "launch", lambda: Launch(0, 3, 4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    words = [*data, "--out", str(tmp_path / "run"), "--device", device]
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err
    monkeypatch.setattr(cli_processes, "launch", lambda: Launch(0, 1, 4))
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: torch.ones(*sizes))
    assert cli_processes.own_device("cuda") == torch.device("cuda:1")
    assert cli_processes.own_device("cpu") == torch.device("cpu")
