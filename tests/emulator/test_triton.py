"""Triton's kernels in its interpreter: the ops' own tests, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import INTERPRETED, missing
from paths import ROOT, file_of

from ganfast.ops import triton_launch

TESTED = ("batch_norm_act", "binary_cross_entropy", "gan_loss", "triton_losses", "triton_forms")
CHOSEN = (
    "test_every_mode or every_form and float32 or double_backward and given0 and norm_act"
    " or cross_entropy_in_parts and float32 or gan_loss_in_parts and 1000"
)
"""For `make test`: every kernel in each of its forms, in float32."""


def interpret(tests: str, *names: str) -> None:
    """Run tests in a process where Triton interprets its kernels."""
    if INTERPRETED or triton_launch.why_not("cuda"):
        missing("triton", triton_launch.why_not("cuda") or "this is the interpreter")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", tests, "--no-header",
         *map(file_of, names)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]


def test_chosen_tests_pass_in_the_interpreter():
    interpret(f"triton and ({CHOSEN})", *TESTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_the_ops_pass_their_tests_in_the_interpreter(name):
    interpret("triton", name)
