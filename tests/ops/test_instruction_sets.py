"""The op's tests again with the narrower instruction sets that another processor would choose."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import missing
from paths import ROOT, file_of

import ganfast
from ganfast.ops import extension

DESCRIBED = {
    "baseline": "baseline",
    "avx2": "AVX2",
    "avx512": "AVX-512,",
    "avx512_bf16": "AVX-512 with bfloat16",
}
SLOW = ("batch_norm_act", "adversarial", "binary_cross_entropy", "gan_loss")
TESTED = ("fuzz", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))
NARROWEST_FIRST = list(DESCRIBED)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("name", TESTED)
def test_narrower_instruction_sets_pass_the_same_tests(capability, name):
    if "native" not in ganfast.backend.available("cpu"):
        missing("native", ganfast.backend.explain("cpu"))
    description = extension.part("cpu").description or ""
    here = next(name for name, text in DESCRIBED.items() if description.startswith(text))
    if NARROWEST_FIRST.index(here) <= NARROWEST_FIRST.index(capability):
        pytest.skip(f"this processor itself has {here}")
    environment = {**os.environ, "GANFAST_CPU_CAPABILITY": capability}
    code = "from ganfast.ops import extension; print(extension.part('cpu').description)"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith(DESCRIBED[capability])
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-k", "native", "--no-header",
         file_of(name)],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
