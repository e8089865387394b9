"""The memory layout of a step: measured, kept in checkpoints, and shared by optimizer states."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("tqdm")

from ganfast.models import GAN, dcgan, mlp_gan
from ganfast.nn import GANLoss
from ganfast.training import GANStep, layout
from ganfast.training.batch import Batch


@pytest.fixture
def times(monkeypatch):
    """Measured seconds, contiguous and channels-last, that a trial will find; and its calls."""
    found, calls = {False: 1.0, True: 0.5}, []
    monkeypatch.setattr(layout, "_measured", {})
    monkeypatch.setattr(layout, "_try", lambda step, batch: calls.append(step) or dict(found))
    return found, calls


def make_step(gan: GAN | None = None, fused: bool = False, **options) -> GANStep:
    torch.manual_seed(0)
    gan = gan or dcgan(image_size=16, channels=1, width=4, latent=6)
    adams = [torch.optim.Adam(m.parameters(), 1e-3, fused=fused) for m in gan[:2]]
    options.setdefault("latent", gan.latent)
    return GANStep(*gan[:2], *adams, GANLoss(), **options)


def images(size: int = 8) -> torch.Tensor:
    return torch.rand(size, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def strides(step: GANStep) -> list[tuple[int, ...]]:
    return [p.stride() for m in (step.generator, step.discriminator) for p in m.parameters()]


@pytest.mark.parametrize("faster", [False, True])
def test_the_faster_layout_is_taken(times, faster):
    times[0].update({faster: 0.010, not faster: 0.011})
    step = make_step()
    assert "layout: to be decided" in step.explain()
    step(images())
    name = "channels-last" if faster else "contiguous"
    assert f"layout: {name}, measured: 1" in step.explain()
    weights = [p for m in (step.generator, step.discriminator) for p in m.parameters()]
    form = torch.channels_last if faster else torch.contiguous_format
    assert all(p.is_contiguous(memory_format=form) for p in weights if p.dim() == 4)


def test_a_gain_within_noise_changes_nothing(times):
    times[0].update({False: 0.010, True: 0.0099})
    step = make_step()
    step(images())
    assert "layout: contiguous" in step.explain()


def test_shapes_are_measured_once_a_process(times):
    for size in (8, 8, 4):
        make_step()(images(size))
    assert len(times[1]) == 2


@pytest.mark.parametrize("options", [{}, {"r1": 1.0, "accumulate": 2}, {"penalty": 1.0}])
def test_a_trial_leaves_everything_as_it_was(monkeypatch, options):
    monkeypatch.setattr(layout, "_measured", {})
    step = make_step(ema=0.9, **options)
    before = copy.deepcopy([step.generator.state_dict(), step.discriminator.state_dict()])
    rng, real = torch.get_rng_state(), images()
    kept = real.clone()
    step.layout._choose(Batch(real))
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(real, kept)
    after = [step.generator.state_dict(), step.discriminator.state_dict()]
    for ours, theirs in zip(after, before, strict=True):
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not step.optimizer_g.state
    assert not step.optimizer_d.state
    assert all(p.grad is None for p in step.generator.parameters())
    (found,) = layout._measured.values()
    assert min(found.values()) > 0


def test_both_layouts_are_tried(monkeypatch):
    monkeypatch.setattr(layout, "_measured", {})
    seen = []
    update = GANStep.update
    monkeypatch.setattr(
        GANStep, "update",
        lambda step, batch: seen.append(step.layout.channels_last) or update(step, batch),
    )  # fmt: skip
    make_step()(images())
    assert seen[:-1] == [False, True] * layout.ROUNDS
    monkeypatch.setattr(layout, "BUDGET_S", 0.0)
    seen.clear()
    make_step()(images(4))
    assert seen[:-1] == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"latent": lambda count: torch.randn(count, 6, 1, 1)},
            "the latent vectors come from a function",
        ),
        ({"gan": mlp_gan(16, 1, 6, 4)}, "contiguous, the usual one"),
        ({"channels_last": True}, "channels-last, as asked for"),
    ],
)
def test_what_is_not_measured(times, options, said):
    step = make_step(**options)
    step(images())
    assert said in step.explain()
    assert not times[1]


def test_networks_that_cannot_be_copied_stay_contiguous(monkeypatch):
    monkeypatch.setattr(layout, "_measured", {})

    def refuse(self, memo):
        raise RuntimeError("no copies")

    step = make_step()
    monkeypatch.setattr(type(step.generator), "__deepcopy__", refuse, raising=False)
    step(images())
    assert "layout: contiguous, not measured: RuntimeError: no copies" in step.explain()


def test_a_resumed_run_keeps_the_layout(times):
    step = make_step()
    step(images())
    times[0].update({False: 0.1, True: 0.5})  # the machine is another one by now
    layout._measured.clear()
    again = make_step()
    again.load_state_dict(step.state_dict())
    again(images())
    assert "layout: channels-last, as in the checkpoint" in again.explain()
    asked = make_step(channels_last=False)
    asked.load_state_dict(step.state_dict())
    asked(images())
    assert "layout: contiguous, as asked for" in asked.explain()
    unknown = make_step()
    unknown.load_state_dict({"scaler": {}, "average": None})  # of an earlier version
    unknown(images())
    assert "layout: contiguous, measured" in unknown.explain()


@pytest.mark.parametrize("saved", [False, True])
def test_optimizer_states_follow_the_layout(saved):
    """Adam's fused kernel walks weights and states in the order of memory, whatever the strides."""
    real = images()
    first = make_step(fused=True, channels_last=saved, ema=0.9)
    first(real)
    copied = copy.deepcopy(GAN(first.generator, first.discriminator, (6, 1, 1), (1, 16, 16)))
    then = make_step(copied, fused=True, channels_last=not saved, ema=0.9)
    for name in ("optimizer_g", "optimizer_d"):
        state = copy.deepcopy(getattr(first, name).state_dict())  # else both write into it
        getattr(then, name).load_state_dict(state)
    then.load_state_dict(first.state_dict())
    for step in (first, then):
        torch.manual_seed(4)
        step(real)
    for optimizer in (then.optimizer_g, then.optimizer_d):
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].stride() == parameter.stride()
    assert strides(first) != strides(then)
    for one, two in (
        (first.generator, then.generator), (first.discriminator, then.discriminator),
        (first.average.generator, then.average.generator),
    ):  # fmt: skip
        for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_modules_in_the_right_layout_keep_their_tensors():
    step = make_step(channels_last=False)
    pointers = [p.data_ptr() for p in step.generator.parameters()]
    step.layout.settle(Batch(images()))
    assert [p.data_ptr() for p in step.generator.parameters()] == pointers
    assert isinstance(step.generator, nn.Module)
