"""The user's view of dispatch, and what happens without the extension."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import missing

from ganfast import backend
from ganfast.nn import BatchNorm2d
from ganfast.ops import extension, registry, triton_launch

OPS = list(registry.eager_kernels)


def python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return result.stdout


def test_without_the_extension_everything_works_and_says_why():
    code = """
import torch, ganfast
layer = ganfast.nn.BatchNorm2d(3, activation="relu")
x = torch.randn(4, 3, 2, 2, requires_grad=True)
y = layer(x)
g, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
g.square().sum().backward()
assert layer.weight.grad is not None and layer.num_batches_tracked == 1
compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
compiled(x).sum().backward()
print(ganfast.backend.available("cpu"))
print(ganfast.backend.explain("cpu"))
try:
    ganfast.backend.use("native")
except RuntimeError as error:
    print("refused:", error)
"""
    said = python(code, GANFAST_NATIVE="0")
    assert "('eager',)" in said
    assert "switched off by GANFAST_NATIVE=0" in said
    assert "refused: backend 'native' is not available" in said
    assert "pip install --no-build-isolation" in said


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_use_changes_who_serves_and_ends_with_the_block():
    if "native" not in backend.available("cpu"):
        missing("native", backend.explain("cpu"))
    before = backend.explain("cpu")
    # Gradients of targets, which hardly anybody asks for, are eager everywhere.
    assert before.count("  native") == len(OPS) - 1
    with backend.use("eager"):
        inside = backend.explain("cpu")
        assert inside.count("eager") >= len(OPS)
        assert "backend.use('eager') is in force" in inside
        x = torch.randn(4, 3, 2, 2)
        with torch.profiler.profile() as profile:
            BatchNorm2d(3)(x)
        assert any(event.key == "aten::addcmul" for event in profile.key_averages())
    assert backend.explain("cpu") == before
    with torch.profiler.profile() as profile:
        BatchNorm2d(3)(x)
    assert not any(event.key == "aten::addcmul" for event in profile.key_averages())


def test_use_without_a_block_lasts_until_native_is_asked_for():
    if "native" not in backend.available("cpu"):
        missing("native", backend.explain("cpu"))
    backend.use("eager")
    backend.use("eager")
    assert "is in force" in backend.explain("cpu")
    backend.use("native")
    assert "is in force" not in backend.explain("cpu")


def test_requests_that_cannot_be_met_raise():
    with pytest.raises(ValueError, match="got 'cudnn'"):
        backend.use("cudnn")


def test_triton_without_a_gpu_says_what_it_needs():
    refused = python(
        "import torch; torch.version.cuda = None; import ganfast\n"
        "try: ganfast.backend.use('triton')\n"
        "except RuntimeError as error: print(error)\n"
        "print(ganfast.backend.explain('cuda'))",
        TRITON_INTERPRET="0",
    )
    assert "backend 'triton' is not available: torch" in refused
    assert refused.count("is a build without CUDA") == 3
    assert "cuda  eager" in refused


TRITON_CODE = """
import sys, torch, ganfast
from ganfast import backend
assert "triton" not in sys.modules
print(backend.available("cpu"), backend.available("cuda"))
x = torch.randn(4, 3, 2, 2)
expected = ganfast.nn.BatchNorm2d(3)(x)
with backend.use("triton"):
    print(backend.explain("cpu"))
    print(backend.explain("cuda"))
    with backend.use("eager"):
        assert "triton" not in backend.explain("cpu")
    torch.testing.assert_close(ganfast.nn.BatchNorm2d(3)(x), expected)
    print("imported:", "triton.runtime.interpreter" in sys.modules)
print(backend.explain("cuda"))
"""


def test_triton_serves_the_cpu_in_its_interpreter_only():
    if triton_launch.why_not("cuda"):
        missing("triton", triton_launch.why_not("cuda"))
    interpreted = python(TRITON_CODE, TRITON_INTERPRET="1")
    plain = python(TRITON_CODE, TRITON_INTERPRET="0")
    with_kernels = len(registry.triton_kernels)
    assert with_kernels == len(OPS) - 1
    assert interpreted.count("cpu   triton") == with_kernels
    assert plain.count("cpu   triton") == 0
    assert "'triton'" not in plain.partition(") (")[0]
    assert "'triton'" in interpreted.partition(") (")[0]
    for said in (interpreted, plain):
        assert said.count("ganfast.backend.use('triton') is in force") == 2
    assert "imported: True" in interpreted
    assert "imported: False" in plain


def test_triton_fills_cuda_where_the_extension_does_not():
    if triton_launch.why_not("cuda"):
        missing("triton", triton_launch.why_not("cuda"))
    said = backend.explain("cuda")
    for op in OPS:
        if op in registry.filled_by_triton:
            assert f"{op:39}cuda  triton" in said
    code = (
        "import ganfast; print(ganfast.backend.available('cuda'), ganfast.backend.explain('cuda'))"
    )
    alone = python(code, GANFAST_NATIVE="0")
    assert alone.startswith("('triton', 'eager')")
    assert alone.count("cuda  triton") == len(registry.triton_kernels)
    assert "triton kernels are not used" not in alone


def test_other_devices_are_served_by_eager():
    assert backend.available("meta") == ("eager",)
    assert "there are none for the device type 'meta'" in backend.explain("meta")
    assert BatchNorm2d(3, device="meta")(torch.empty(4, 3, 2, 2, device="meta")).is_meta


def test_cuda_tensors_are_explained_without_a_gpu():
    said = backend.explain("cuda")
    assert said.count("cuda  ") == len(OPS)
    if extension.is_loaded("cuda"):  # gradients of targets are eager
        assert said.count("native") == len(OPS) - 1
    else:
        assert "cuda: native kernels are not used: " in said
