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
from ganfast.ops import _library, _native

OPS = list(_library.eager_kernels)


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
    assert before.count("native") == len(OPS) - 1
    with backend.use("eager"):
        inside = backend.explain("cpu")
        assert inside.count("eager") >= len(OPS)
        assert "backend.use('eager') is in force" in inside
        x = torch.randn(4, 3, 2, 2)
        with torch.profiler.profile() as profile:
            BatchNorm2d(3)(x)
        assert any(event.key == "aten::native_batch_norm" for event in profile.key_averages())
    assert backend.explain("cpu") == before
    with torch.profiler.profile() as profile:
        BatchNorm2d(3)(x)
    assert not any(event.key == "aten::native_batch_norm" for event in profile.key_averages())


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
    with pytest.raises(RuntimeError, match="triton"):
        backend.use("triton")


def test_other_devices_are_served_by_eager():
    assert backend.available("meta") == ("eager",)
    assert "there are none for the device type 'meta'" in backend.explain("meta")
    assert BatchNorm2d(3, device="meta")(torch.empty(4, 3, 2, 2, device="meta")).is_meta


def test_cuda_tensors_are_explained_without_a_gpu():
    said = backend.explain("cuda")
    if _native.is_loaded("cuda"):  # gradients of targets are eager
        assert said.count("native") == len(OPS) - 1
        assert backend.available("cuda") == ("native", "eager")
    else:
        assert said.count("eager") >= len(OPS)
        assert "cuda: native kernels are not used: " in said
