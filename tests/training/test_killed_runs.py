"""A training run killed at any moment ends, once resumed, with the bits of one never killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)

from ganfast.training import load_newest  # noqa: E402

STEPS = 400
SETTINGS = ["--image-size", "16", "--width", "4", "--latent", "6", "--batch-size", "8"]
SETTINGS += ["--no-channels-last"]  # a layout chosen by time may be another one in another process
EVERY = ["--log-every", "1", "--checkpoint-every", "2", "--sample-every", "1000"]
TIMES = 3  # columns that no two runs share
STARTING_S = 60.0  # torch's import on a busy machine


def start(out: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ganfast", "train", "--out", str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr.decode()


def wait_for_progress(process: subprocess.Popen[bytes], metrics: Path, rows: int) -> bool:
    """Wait until the run has written more rows; False where it ended before."""
    deadline = time.monotonic() + STARTING_S
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) <= rows:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("planned", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, planned):
    images = numpy.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=numpy.uint8)
    numpy.savez(tmp_path / "images.npz", x=images)
    data = ["--data", f"npz:{tmp_path / 'images.npz'}", *SETTINGS, "--steps", str(STEPS), *EVERY]
    whole = start(tmp_path / "whole", *data)
    rng, out, kills = random.Random(0), tmp_path / "killed", 0
    metrics = out / "metrics.csv"
    process = start(out, *data)
    for _ in range(planned):
        rows = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
        if not wait_for_progress(process, metrics, rows + 4):  # beyond a checkpoint
            break  # so fast a machine that the run has ended
        time.sleep(rng.uniform(0, 0.15))  # in a step, a row or a checkpoint
        process.kill()
        process.communicate()
        kills += 1
        process = start(out, "--resume")
    finish(process)
    finish(whole)
    assert kills >= planned // 2
    expected, found = (load_newest(folder)[1] for folder in (tmp_path / "whole", out))
    assert found["step"] == expected["step"] == STEPS
    for part in ("generator", "discriminator"):
        for name, value in expected[part].items():
            assert torch.equal(found[part][name], value), name
    rows_of = [
        [line.split(",")[:-TIMES] for line in (folder / "metrics.csv").read_text().splitlines()]
        for folder in (tmp_path / "whole", out)
    ]
    assert rows_of[0] == rows_of[1]
