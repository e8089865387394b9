"""Which backends the tests run on, and which of them must be there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import interpreter
import pytest
import torch

import ganfast

REQUIRED = set(filter(None, os.environ.get("GANFAST_REQUIRE", "").split(",")))
"""Backends whose absence is a failure instead of a skip: native, cuda, triton."""

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() or "cuda" in REQUIRED else [])

INTERPRETED = "triton" in ganfast.backend.available("cpu")
"""Whether Triton's kernels run on the CPU, in its interpreter: where TRITON_INTERPRET=1 is set."""

BACKENDS = ["eager", "native"] + (["triton"] if INTERPRETED or "cuda" in DEVICES else [])


def missing(name: str, reason: str) -> None:
    """Skip the test for want of a backend, or fail it where GANFAST_REQUIRE names the backend."""
    if name in REQUIRED:
        pytest.fail(f"GANFAST_REQUIRE={name}: {reason}")
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    # Values in bf16 and fp16 are tested on every processor, in the processes that tests start too.
    os.environ.setdefault("GANFAST_ALLOW_EMULATED", "1")
    if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, and for the processes that tests start
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    if INTERPRETED:  # it computes with numpy, which warns of every NaN and infinity
        config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning")
        interpreter.prepare()


@pytest.hookimpl(tryfirst=True)  # -m chooses among the marks that are there then
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(getattr(item, "callspec", None), "params", {}).get("device") == "cuda":
            item.add_marker("gpu")
    if INTERPRETED:
        items[:] = [item for item in items if not interpreter.is_too_slow(item.name)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def several_threads() -> Iterator[int]:
    """Let the kernels use several threads, which workers of pytest-xdist do not."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        missing("cuda", "torch sees no GPU")
    return str(request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, device: str) -> Iterator[str]:
    if request.param == "triton" and device == "cpu" and not INTERPRETED:
        pytest.skip("Triton's kernels run on the CPU with TRITON_INTERPRET=1 only")
    if request.param not in ganfast.backend.available(device):
        missing(request.param, ganfast.backend.explain(device))
    with ganfast.backend.use(request.param):
        yield request.param
