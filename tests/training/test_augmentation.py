"""Differentiable augmentation: what it changes, what it leaves, and who sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tqdm")

from ganfast.nn import GANLoss
from ganfast.training import GANStep, augmentation
from ganfast.training import step as step_module
from ganfast.training.augmentation import augment


class TwoProcesses:
    """One of two processes, as augment sees it."""

    count = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def part(self, batch: Tensor) -> Tensor:
        return batch.chunk(2)[self.rank]


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3 * 8 * 8)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).view(-1, 3, 8, 8).tanh()


class Seen(nn.Module):
    """A discriminator that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 1, 8)
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images.append(x.detach().clone())
        return self.score(x).flatten()


def neutral() -> Tensor:
    """Return draws that change neither colour nor place, and cut at the corner."""
    return torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0])


def test_each_change_is_what_its_words_say(monkeypatch):
    x = torch.arange(1, 65.0).view(1, 1, 8, 8).expand(2, 3, 8, 8) / 64

    def changed(**draws: float) -> Tensor:
        row = neutral()
        for index, name in enumerate(
            ("brightness", "saturation", "contrast", "down", "along", "cut_down", "cut_along")
        ):
            row[index] = draws.get(name, row[index])
        monkeypatch.setattr(augmentation.torch, "rand", lambda n, *_, **__: row.expand(n, -1))
        return augment(x)

    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[:2, :2] = False  # a square of 4 pixels, centred on the corner
    plain = changed()
    torch.testing.assert_close(plain, x * outside)
    torch.testing.assert_close(changed(brightness=1.0), (x + 0.5) * outside)
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(changed(contrast=0.0), ((x - mean) / 2 + mean) * outside)
    moved = changed(down=0.999)  # one pixel, of eight
    torch.testing.assert_close(moved[..., 2:7, :], x[..., 3:, :])
    assert (moved[..., 7, :] == 0).all()
    moved = changed(along=0.0)
    torch.testing.assert_close(moved[..., 2:, 1:], x[..., 2:, :-1])
    assert (moved[..., 0] == 0).all()
    cut = changed(cut_down=0.5, cut_along=0.999)
    assert (cut == 0).nonzero()[:, 2].unique().tolist() == [2, 3, 4, 5]
    assert (cut == 0).nonzero()[:, 3].unique().tolist() == [6, 7]


def test_no_saturation_makes_images_grey(monkeypatch):
    row = neutral()
    row[1] = 0.0
    x = torch.rand(2, 3, 8, 8)
    monkeypatch.setattr(augmentation.torch, "rand", lambda n, *_, **__: row.expand(n, -1))
    grey = augment(x)[..., 2:, 2:]
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x)[..., 2:, 2:])


@pytest.mark.parametrize("shape", [(5, 1, 16, 16), (3, 3, 7, 12), (0, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shapes_stay_and_gradients_arrive(shape, dtype):
    x = torch.rand(shape, dtype=dtype, requires_grad=True)
    changed = augment(x)
    assert changed.shape == shape
    changed.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any() or not len(x)


def test_gradients_are_those_of_finite_differences():
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def fixed(images: Tensor) -> Tensor:
        torch.manual_seed(3)
        return augment(images)

    assert torch.autograd.gradcheck(fixed, x)


def test_images_are_changed_apart_and_a_seed_repeats_them():
    x = torch.rand(1, 3, 8, 8).expand(6, 3, 8, 8)
    torch.manual_seed(1)
    first = augment(x)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 6
    torch.manual_seed(1)
    assert torch.equal(augment(x), first)


def test_processes_draw_what_one_would():
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(2)
    whole = augment(x)
    parts = []
    for rank, part in enumerate(x.chunk(2)):
        torch.manual_seed(2)
        parts.append(augment(part, TwoProcesses(rank)))
    torch.testing.assert_close(torch.cat(parts), whole)


def make_step(**options: object) -> GANStep:
    torch.manual_seed(0)
    networks = Generator(), Seen()
    adams = [torch.optim.Adam(network.parameters(), 1e-2) for network in networks]
    return GANStep(*networks, *adams, GANLoss(), (4,), channels_last=False, **options)


@pytest.mark.parametrize("options", [{}, {"paired": True}, {"r1": 1.0}, {"accumulate": 2}])
def test_the_discriminator_sees_nothing_else_in_either_update(monkeypatch, options):
    """Real and generated images alike: with the change replaced by 9, it sees only nines."""
    step = make_step(diff_augment=True, **options)
    monkeypatch.setattr(step_module, "augment", lambda x, processes: x * 0 + 9)
    step(torch.rand(4, 3, 8, 8))
    seen = torch.cat([x.flatten() for x in step.discriminator.images[-3:]])
    assert (seen == 9).all()


def test_the_generator_learns_through_it():
    step = make_step(diff_augment=True)
    before = step.generator.linear.weight.clone()
    step(torch.rand(4, 3, 8, 8))
    moved = (step.generator.linear.weight != before).float().mean()
    assert moved > 0.9


def test_it_is_off_by_default_and_then_draws_nothing():
    real = torch.rand(4, 3, 8, 8)
    results = [make_step(**options)(real) for options in ({}, {"diff_augment": False})]
    assert torch.equal(results[0].d_loss, results[1].d_loss)
    step = make_step()
    step(real)
    assert any(torch.equal(x, real) for x in step.discriminator.images)
    assert not torch.equal(make_step(diff_augment=True)(real).d_loss, results[0].d_loss)
