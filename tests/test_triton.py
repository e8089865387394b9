"""Triton's kernels in its interpreter: the ops' own tests, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import INTERPRETED, missing

from ganfast.ops import _triton

TESTS = Path(__file__).parent
TESTED = ("batch_norm_act", "binary_cross_entropy", "gan_loss", "triton_losses", "triton_forms")


def test_the_ops_pass_their_tests_in_the_interpreter():
    if INTERPRETED or _triton.why_not("cuda"):
        missing("triton", _triton.why_not("cuda") or "this is the interpreter")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "triton", "--no-header",
         *(str(TESTS / f"test_{name}.py") for name in TESTED)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, cwd=TESTS.parent,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
