"""The setting of the C library that the training loop makes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)

FAULTS_OF_TWENTY_CLONES = """
import resource, sys
import torch
import ganfast
from ganfast.training import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("no glibc")
    raise SystemExit
x = torch.zeros(12 * 2**20)  # 48 MB
for _ in range(5):  # until the heap has a place for it
    x.clone()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    x.clone()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str) -> int:
    command = [sys.executable, "-c", FAULTS_OF_TWENTY_CLONES, argument]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if said == "no glibc":
        pytest.skip("the C library is not glibc")
    return int(said)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults of Linux")
def test_freed_memory_is_kept_only_on_request():
    # A clone that finds no room in the heap for once costs 12,288 faults (23 with huge pages).
    assert faults("keep") < faults("leave") / 5


@pytest.mark.parametrize("keep", [True, False])
def test_the_training_loop_asks_for_it(tmp_path, monkeypatch, keep):
    from test_training import make_trainer

    asked = []
    monkeypatch.setattr("ganfast.training.trainer.keep_freed_memory", lambda: asked.append(1))
    trainer = make_trainer(tmp_path, steps=1, keep_memory=keep)
    assert not asked
    trainer.run()
    assert bool(asked) is keep
