"""Each example trains with the losses of the same loop without ganfast, and says what it fused."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

EXAMPLES = {
    # Name: the package it needs, and how many pairs it fuses.
    "monai_patchgan": ("monai", "5 pairs and 1 loss fused"),
    "vqgan_discriminator": ("torch", "4 pairs and 0 losses fused"),
    "cyclegan_blocks": ("torch", "10 pairs and 0 losses fused"),
    "ctgan_generator": ("ctgan", "2 pair(s) and 0 loss(es) fused"),
}


def run(*command):
    """Run in a process of its own: the packages warn, and set options of libraries."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout, result.stderr


def losses(output):
    return [float(value) for value in re.findall(r"(?:or|er) (-?\d+\.\d+)", output)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_train_as_without_ganfast(name):
    package, fused = EXAMPLES[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install ganfast[examples]")
    example = ROOT / "examples" / f"{name}.py"
    output, log = run(example, "--steps", 3)
    assert fused in output + log
    plain, _ = run(example, "--steps", 3, "--no-fuse")
    assert len(losses(output)) == 2
    assert losses(output) == pytest.approx(losses(plain), abs=2e-4)


@pytest.mark.slow
def test_the_vqgan_trains_in_two_processes():
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    output, _ = run(*launch, ROOT / "examples" / "vqgan_discriminator.py", "--steps", 3)
    assert len(losses(output)) == 4
