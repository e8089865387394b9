"""SyncBatchNorm: two processes against one, and the converter."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from paths import ROOT, TESTS
from torch import nn

import ganfast
from ganfast.nn import BatchNorm2d, SyncBatchNorm

CHECKS = ("values", "collectives", "empty_share", "splits", "halves", "compile", "ddp")

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)


@needs_gloo
def test_two_processes_equal_one():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*command, str(TESTS / "nn" / "distributed_checks.py"), *CHECKS],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert result.stdout.split("\n")[:-1] == [f"{name} holds" for name in CHECKS]


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        BatchNorm2d(8, eps=0.8, activation="leaky_relu", negative_slope=0.2),
        nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU()),
    )


def test_the_converter_keeps_everything_but_the_class():
    before, after = model(), model()
    after.load_state_dict(before.state_dict())
    parameters, norm = list(after.parameters()), after[1]
    seen = []
    handle = norm.register_forward_pre_hook(lambda *_: seen.append(1))
    assert ganfast.convert_sync_batchnorm(after) is after
    assert after[1] is norm
    assert [type(m) for m in (after[1], after[2][1])] == [SyncBatchNorm, SyncBatchNorm]
    assert (after[1].activation, after[1].negative_slope, after[1].eps) == ("leaky_relu", 0.2, 0.8)
    assert after[2][1].activation is None
    assert all(a is b for a, b in zip(after.parameters(), parameters, strict=True))
    assert list(after.state_dict()) == list(before.state_dict())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(after(x), before(x))  # one process: a BatchNorm
    torch.testing.assert_close(after.eval()(x), before.eval()(x))
    assert len(seen) == 2
    handle.remove()  # a lambda cannot be pickled
    again = pickle.loads(pickle.dumps(copy.deepcopy(after)))
    torch.testing.assert_close(again(x), after(x))
    assert ganfast.convert_sync_batchnorm(after)[1] is norm  # twice is once


def test_a_layer_alone_is_converted():
    layer = BatchNorm2d(3, activation="relu")
    group = object()
    assert type(ganfast.convert_sync_batchnorm(layer, group)) is SyncBatchNorm
    assert layer.process_group is group
    with pytest.raises(ValueError, match=r"at least 2D input \(got 1D"):
        layer(torch.randn(3))


def test_a_model_that_torchs_converter_had_is_noticed():
    fused = nn.Sequential(BatchNorm2d(3, activation="relu"), nn.Identity())
    broken = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Flatten(), fused))
    with pytest.warns(UserWarning, match=r"1\.0 is torch's SyncBatchNorm before an Identity"):
        ganfast.convert_sync_batchnorm(broken)


def test_constructor_is_torchs():
    ours = SyncBatchNorm(3, 1e-3, None, True, True, None, "cpu", torch.float64, activation="relu")
    theirs = nn.SyncBatchNorm(3, 1e-3, None, True, True, None, "cpu", torch.float64)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert (ours.eps, ours.momentum, ours.weight.dtype) == (1e-3, None, torch.float64)
    with pytest.raises(ValueError, match="activation must be one of"):
        SyncBatchNorm(3, activation="gelu")
