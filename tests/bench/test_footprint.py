"""What a step takes beside time: bytes counted exactly, kernels only on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ganfast.bench import SUITES, Options
from ganfast.bench.footprint import _kernels, _peak_and_end, _recorded, _total, footprint

KB = 1000
SMALL = (4, 1, 16, 16)


def zeros(size_bytes: int) -> Tensor:
    return torch.zeros(size_bytes, dtype=torch.uint8)


class Net:
    """Keep 30 kB from its making on and 5 kB of each step, as gradients are kept."""

    def __init__(self) -> None:
        self.weights = zeros(30 * KB)
        self.gradient: Tensor | None = None

    def __call__(self) -> None:
        activations = [zeros(10 * KB), zeros(10 * KB)]  # the second time beside the gradient
        self.gradient = None
        activations.pop()
        activations.append(zeros(2 * KB))
        self.gradient = zeros(5 * KB)


def test_the_peak_and_what_is_kept_are_exact():
    assert footprint(Net)[:3] == (55 * KB, 35 * KB, None)


def test_a_peak_while_the_networks_are_made_counts():
    def build() -> Net:
        zeros(80 * KB)
        return Net()

    assert footprint(build).peak_bytes == 80 * KB


def test_what_was_there_before_does_not_count():
    before = [zeros(64 * KB)]

    def build() -> Net:
        before.clear()
        return Net()

    assert footprint(build)[:3] == (55 * KB, 35 * KB, None)


def test_blocks_of_an_earlier_recording_are_not_subtracted():
    held = []
    footprint(lambda: lambda: held.append(zeros(64 * KB)))
    assert len(held) == 2

    def build() -> Net:
        held.clear()
        return Net()

    assert footprint(build)[:3] == (55 * KB, 35 * KB, None)


def test_releases_are_followed_in_the_order_of_their_times():
    changes = [(3.0, 1, -40), (1.0, 1, 40), (2.0, 2, 2), (4.0, 3, 30), (5.0, 9, -500)]
    events = [{"name": "[memory]", "ts": t, "args": {"Addr": a, "Bytes": b}} for t, a, b in changes]
    found = _peak_and_end([{"name": "aten::add", "cat": "cpu_op"}, *events])
    assert [_total(live) for live in found] == [42, 32]


def test_memory_is_counted_to_the_outermost_operation_that_allocates():
    class Pair:
        def __init__(self):
            self.conv = torch.nn.Conv2d(1, 2, 1, bias=False)
            self.norm = torch.nn.BatchNorm2d(2, affine=False, track_running_stats=False)
            self.optimizer = torch.optim.SGD(self.conv.parameters(), 0.1, momentum=0.9)
            self.x = torch.zeros(1, 1, 100, 100)

        def __call__(self):
            y = self.norm(self.conv(self.x))
            y.square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    found = footprint(Pair)
    assert sum(found.parts.values()) == found.peak_bytes
    assert found.parts["networks and images"] == 4 * (2 + 100 * 100)
    assert found.parts["optimizers"] == 4 * 2
    for part in ("convolutions", "normalisation and activations"):  # and a few statistics
        assert 4 * 2 * 100 * 100 <= found.parts[part] < 4 * 2 * 100 * 100 + 100
    assert found.parts["backward"] > 0


def test_kernels_are_not_copies_or_calls():
    kinds = ["kernel", "gpu_memcpy", "cuda_runtime", "kernel", "cpu_op"]
    assert _kernels([{"cat": kind} for kind in kinds] + [{"name": "no category"}]) == 2


def test_the_profiler_writes_nothing(capfd):
    with _recorded([torch.profiler.ProfilerActivity.CPU]):
        torch.zeros(3)
    assert capfd.readouterr() == ("", "")


def test_every_provider_of_a_step_is_measured_alone(device):
    pytest.importorskip("tqdm")
    names = ("eager", "layers", "losses")
    (case,) = SUITES["step"].cases(Options(device, shapes=(SMALL,), against=names))
    found = case.footprints()
    assert tuple(found) == ("ganfast", *names)  # the floor takes no step
    kept = {taken.kept_bytes for taken in found.values()}
    if device == "cpu":  # the same networks, gradients and states of Adam, whatever the layers
        assert len(kept) == 1
    for taken in found.values():
        assert taken.peak_bytes > taken.kept_bytes > 0
        assert (taken.kernels is None) == (device == "cpu")
        assert taken.kernels is None or taken.kernels > 10
    assert found["layers"].peak_bytes <= found["eager"].peak_bytes * 1.01


def test_the_sizes_of_a_step():
    shapes = [case.shape for case in SUITES["step"].cases(Options())]
    assert shapes == [
        "64x1x32x32", "128x1x32x32", "64x3x64x64", "128x3x64x64", "32x3x128x128",
    ]  # fmt: skip
