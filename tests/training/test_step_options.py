"""Each option of a step against a plain loop, number for number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("tqdm")

from ganfast import nn as fast
from ganfast.models import stock
from ganfast.nn import GANLoss
from ganfast.training import GANStep
from ganfast.training.capture import CapturedStep

LATENT, CLASSES, SIZE = 5, 3, 8


class Generator(nn.Module):
    """Make 8x8 images, of a class where labels are given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, LATENT)
        self.linear = nn.Linear(LATENT, 4 * 16)
        self.norm = fast.BatchNorm2d(4, activation="relu")
        self.up = nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        z = z if labels is None else z * self.embedding(labels)
        return self.up(self.norm(self.linear(z).view(-1, 4, 4, 4))).tanh()


class Discriminator(nn.Module):
    """Score images by a projection on their class, as a whole or at two scales."""

    def __init__(self, scales: int = 1) -> None:
        super().__init__()
        self.scales = scales
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = fast.BatchNorm2d(4, activation="leaky_relu", negative_slope=0.2)
        self.embedding = nn.Embedding(CLASSES, 4)
        self.score = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor | list[Tensor]:
        h = self.norm(self.conv(x))
        if labels is not None:
            h = h * self.embedding(labels)[:, :, None, None]
        maps = [self.score(F.avg_pool2d(h, 2**scale)) for scale in range(self.scales)]
        return maps if self.scales > 1 else maps[0].mean((1, 2, 3))


def plain_step(
    networks: list[Any], optimizers: list[Any], real: Tensor, labels: Tensor | None, *,
    n_critic: int = 1, accumulate: int = 1, clip_norm: float | None = None,
    generator_term: Any = None, target: float = 1.0,
) -> list[Tensor]:  # fmt: skip
    """Train as scripts do: labels of ones and zeros, micro-batches, clipping, and so on."""
    generator, discriminator = networks

    def criterion(scores: Any, label: float) -> Tensor:
        scores = scores if isinstance(scores, list) else [scores]
        losses = [F.binary_cross_entropy_with_logits(s, torch.full_like(s, label)) for s in scores]
        return torch.stack(losses).mean()

    def parts(real: Tensor, labels: Tensor | None, count: int) -> Any:
        given = [()] * count if labels is None else [(part,) for part in labels.chunk(count)]
        return zip(real.chunk(count), given, strict=True)

    def make(images: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        return generator(torch.randn(len(images), LATENT, dtype=real.dtype), *condition)

    def update(network: nn.Module, optimizer: Any) -> None:
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()

    for images, condition in parts(real, labels, n_critic):
        whole = images, (condition[0] if condition else None)
        discriminator.zero_grad()
        d_loss = 0.0
        for few, their in parts(*whole, accumulate):
            fake = make(few, their)
            loss = criterion(discriminator(few, *their), target)
            loss = loss + criterion(discriminator(fake.detach(), *their), 0.0)
            (loss / accumulate).backward()
            d_loss += loss.item() / accumulate
        update(discriminator, optimizers[1])
    generator.zero_grad()
    g_loss = 0.0
    for few, their in parts(*whole, accumulate):
        if accumulate > 1:
            fake = make(few, their)
        loss = criterion(discriminator(fake, *their), target)
        if generator_term is not None:
            loss = loss + generator_term(fake, few)
        (loss / accumulate).backward()
        g_loss += loss.item() / accumulate
    update(generator, optimizers[0])
    return [d_loss, g_loss]


def distance(fake: Tensor, real: Tensor) -> Tensor:
    return 3 * (fake - real).abs().mean()


CASES = {
    "n_critic": {"n_critic": 3},
    "accumulate": {"accumulate": 3},
    "clip_norm": {"clip_norm": 0.05},
    "generator_term": {"generator_term": distance},
    "smooth labels": {"target": 0.9},
    "labels": {"labels": True},
    "scales": {"scales": 2},
    "all": {
        "n_critic": 2, "accumulate": 2, "clip_norm": 0.05, "generator_term": distance,
        "target": 0.8, "labels": True, "scales": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_options_have_the_numbers_of_a_plain_loop(case, paired):
    options = {**CASES[case]}
    scales, labelled = options.pop("scales", 1), options.pop("labels", False)
    target = options.get("target", 1.0)
    torch.manual_seed(0)
    networks = [Generator().double(), Discriminator(scales).double()]
    twins = [stock(network) for network in networks]
    ours, theirs = (
        [torch.optim.Adam(n.parameters(), 1e-2, (0.5, 0.9)) for n in pair]
        for pair in (networks, twins)
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.7**step)
        for optimizer in (*ours, *theirs)
    ]
    loss = GANLoss(real_label=target)
    step = GANStep(
        *networks, *ours, loss, (LATENT,), paired=paired, channels_last=False,
        **{name: value for name, value in options.items() if name != "target"},
    )  # fmt: skip
    rng = torch.Generator().manual_seed(1)
    for _ in range(8):
        real = torch.rand(12, 1, SIZE, SIZE, generator=rng, dtype=torch.float64) * 2 - 1
        labels = torch.randint(CLASSES, (12,), generator=rng) if labelled else None
        state = torch.get_rng_state()
        result = step(real, labels)
        torch.set_rng_state(state)
        expected = plain_step(twins, theirs, real, labels, **options)
        assert [x.item() for x in result[:2]] == pytest.approx(expected, rel=1e-7)
        for schedule in schedules:
            schedule.step()
    assert ("paired: yes" in step.explain()) is paired
    for network, twin in zip(networks, twins, strict=True):
        values = zip(network.state_dict().items(), twin.state_dict().values(), strict=True)
        for (name, actual), value in values:
            # A bias before a normalisation has no gradient but rounding, which Adam enlarges.
            if name not in ("linear.bias", "conv.bias", "norm.running_mean"):
                torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("option", ["penalty", "r1"])
def test_penalties_know_labels_and_scales(option, paired):
    torch.manual_seed(0)
    networks = [Generator().double(), Discriminator(2).double()]
    twins = [stock(network) for network in networks]
    optimizers = [torch.optim.SGD(n.parameters(), 0.0) for n in networks]
    step = GANStep(
        *networks, *optimizers, GANLoss("hinge"), (LATENT,), paired=paired,
        channels_last=False, **{option: 10.0},
    )  # fmt: skip
    real = torch.rand(6, 1, SIZE, SIZE, dtype=torch.float64) * 2 - 1
    labels = torch.randint(CLASSES, (6,))
    state = torch.get_rng_state()
    measured = step(real, labels).d_loss
    torch.set_rng_state(state)
    generator, discriminator = twins
    fake = generator(torch.randn(6, LATENT, dtype=torch.float64), labels).detach()
    real.requires_grad_()
    scores = discriminator(real, labels)
    expected = sum(F.relu(1 - s).mean() for s in scores) / 2
    expected = expected + sum(F.relu(1 + s).mean() for s in discriminator(fake, labels)) / 2
    point = real
    if option == "penalty":
        share = torch.rand(6, 1, 1, 1, dtype=torch.float64)
        point = (share * real + (1 - share) * fake).detach().requires_grad_()
        scores = discriminator(point, labels)
    (gradient,) = torch.autograd.grad(sum(s.sum() for s in scores), point, create_graph=True)
    norms = gradient.flatten(1).norm(dim=1)
    expected = expected + (5 * norms**2 if option == "r1" else 10 * (norms - 1) ** 2).mean()
    torch.testing.assert_close(measured, expected.detach())
    expected.backward()
    for ours, theirs in zip(networks[1].parameters(), discriminator.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# Dynamo asks for the gradient of generated images.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "options", [{}, {"paired": True}, {"penalty": 10.0}, {"r1": 1.0}, {"n_critic": 2}], ids=str
)
def test_compiled_networks_have_the_same_numbers(monkeypatch, options):
    """With the eager inner backend, for torch's compiler takes a minute."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, **kw: compiler(*args, options={"inner": "eager"}, **kw)
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = {}
    for compile in (False, True):
        torch.manual_seed(0)
        networks = [Generator(), Discriminator()]
        optimizers = [torch.optim.Adam(n.parameters(), 1e-3) for n in networks]
        step = GANStep(
            *networks, *optimizers, GANLoss("hinge"), (LATENT,), compile=compile,
            channels_last=False, **options,
        )  # fmt: skip
        assert f"compiled: {'yes' if compile else 'no'}" in step.explain()
        rng = torch.Generator().manual_seed(1)
        found[compile] = [
            value.item()
            for _ in range(5)
            for value in step(torch.rand(8, 1, SIZE, SIZE, generator=rng))
        ]
    assert found[True] == pytest.approx(found[False], rel=1e-4, abs=1e-6)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 4  # either network is compiled again once at most
    assert list(networks[0].state_dict()) == list(Generator().state_dict())


def test_half_precision_scales_several_updates():
    torch.manual_seed(0)
    networks = [Generator(), Discriminator()]
    optimizers = [torch.optim.Adam(n.parameters(), 1e-3) for n in networks]
    step = GANStep(
        *networks, *optimizers, GANLoss(), (LATENT,), precision="fp16", n_critic=2, accumulate=2,
        clip_norm=1.0, channels_last=False,
    )  # fmt: skip
    for _ in range(3):
        result = step(torch.rand(8, 1, SIZE, SIZE))
    assert all(torch.isfinite(value) for value in result)
    assert optimizers[1].state[networks[1].score.bias]["step"] == 6


def test_scaled_gradients_are_clipped_by_their_own_norm():
    torch.manual_seed(0)
    networks = [Generator(), Discriminator()]
    optimizers = [torch.optim.SGD(n.parameters(), 1.0) for n in networks]
    step = GANStep(
        *networks, *optimizers, GANLoss(), (LATENT,), precision="fp16", clip_norm=0.01,
        channels_last=False,
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in networks[1].parameters()]
    step(torch.rand(8, 1, SIZE, SIZE))
    changes = torch._foreach_sub(list(networks[1].parameters()), before)
    norm = torch.stack(torch._foreach_norm(changes)).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_accumulation_keeps_one_part_in_memory():
    seen = []
    generator = Generator()
    generator.register_forward_hook(lambda *args: seen.append((len(args[2]), args[2].grad_fn)))
    networks = [generator, Discriminator()]
    optimizers = [torch.optim.SGD(n.parameters(), 0.1) for n in networks]
    step = GANStep(*networks, *optimizers, GANLoss(), (LATENT,), accumulate=4, channels_last=False)
    step(torch.rand(8, 1, SIZE, SIZE))
    assert [count for count, _ in seen] == [2] * 8
    assert [grad_fn is None for _, grad_fn in seen] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_critic": 0}, r"n_critic must be a positive integer below 2\^31, got 0"),
        ({"accumulate": -1}, r"accumulate must be a positive integer below 2\^31, got -1"),
        ({"clip_norm": 0.0}, "clip_norm must be a positive number, got 0.0"),
        ({"n_critic": 2, "accumulate": 3}, "n_critic=2 times accumulate=3 must divide the batch"),
    ],
)
def test_wrong_options_are_refused(options, said):
    networks = [Generator(), Discriminator()]
    optimizers = [torch.optim.SGD(n.parameters(), 0.1) for n in networks]
    with pytest.raises(ValueError, match=said):
        GANStep(*networks, *optimizers, GANLoss(), (LATENT,), **options)(
            torch.rand(8, 1, SIZE, SIZE)
        )


def test_a_schedule_reaches_the_rates_that_a_graph_reads(monkeypatch):
    """What happens to learning rates when a step is captured, without a GPU."""
    monkeypatch.setattr(CapturedStep, "_why_not", lambda self: "")
    networks = [Generator(), Discriminator()]
    optimizers = [torch.optim.Adam(n.parameters(), 0.1) for n in networks]
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in optimizers]
    for optimizer in optimizers:
        optimizer.step()  # else schedulers warn
    step = GANStep(*networks, *optimizers, GANLoss(), (LATENT,))
    late = torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.1)  # after the capture began
    rates = [o.param_groups[0]["lr"] for o in optimizers]
    assert all(isinstance(rate, Tensor) for rate in rates)
    for _ in range(2):
        for schedule in schedules:
            schedule.step()
        step.captured._set_rates()
    late.step()
    step.captured._set_rates()
    assert [o.param_groups[0]["lr"] is rate for o, rate in zip(optimizers, rates, strict=True)]
    assert [rate.item() for rate in rates] == pytest.approx([0.1 * 0.25 * 0.1, 0.1 * 0.25])
