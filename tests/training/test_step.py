"""One step against the PyTorch example's, with every option on and off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("tqdm")

from ganfast.models import GAN, dcgan, mlp_gan, stock
from ganfast.nn import GANLoss
from ganfast.training import GANStep
from ganfast.training.batch import Batch

STEPS = 20


def tiny_dcgan() -> GAN:
    torch.manual_seed(0)
    return dcgan(image_size=16, channels=1, width=4, latent=6)


def tiny_mlp() -> GAN:
    torch.manual_seed(0)
    return mlp_gan(16, 1, 6, 4)


def adams(gan: GAN, rate: float = 1e-3) -> list[torch.optim.Adam]:
    return [torch.optim.Adam(m.parameters(), rate, (0.5, 0.999)) for m in gan[:2]]


def make_step(gan: GAN, rate: float = 1e-3, **options: Any) -> GANStep:
    loss = options.pop("loss", GANLoss())
    options.setdefault("paired", True)
    options.setdefault("channels_last", False)
    return GANStep(*gan[:2], *adams(gan, rate), loss, gan.latent, **options)


def batches(count: int, dtype: torch.dtype = torch.float64, size: int = 8) -> Iterator[Any]:
    rng = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield (torch.rand(size, 1, 16, 16, generator=rng, dtype=torch.float64) * 2 - 1).to(dtype)


def example_step(
    netG: nn.Module, netD: nn.Module, optG: Any, optD: Any, real: torch.Tensor, noise: torch.Tensor
) -> list[float]:
    """Repeat the update of pytorch/examples/dcgan/main.py, whose netD ends in a sigmoid."""
    criterion = nn.BCELoss()
    label = torch.ones(len(real), dtype=real.dtype)
    netD.zero_grad()
    output = netD(real).sigmoid()
    errD_real = criterion(output, label)
    errD_real.backward()
    D_x = output.mean().item()
    fake = netG(noise)
    label.fill_(0)
    output = netD(fake.detach()).sigmoid()
    errD_fake = criterion(output, label)
    errD_fake.backward()
    D_G_z1 = output.mean().item()
    optD.step()
    netG.zero_grad()
    label.fill_(1)
    output = netD(fake).sigmoid()
    errG = criterion(output, label)
    errG.backward()
    optG.step()
    return [(errD_real + errD_fake).item(), errG.item(), D_x, D_G_z1]


def follow_the_example(gan: GAN, dtype: torch.dtype, **options: Any) -> Iterator[tuple[Any, ...]]:
    """Yield what our step and the example's measure, and the networks, after each of 20 steps."""
    for model in gan[:2]:
        model.to(dtype)
    twins = [stock(model) for model in gan[:2]]
    step = make_step(gan, **options)
    theirs = [torch.optim.Adam(m.parameters(), 1e-3, (0.5, 0.999)) for m in twins]
    for real in batches(STEPS, dtype):
        rng = torch.get_rng_state()
        result = [x.item() for x in step(real)]
        torch.set_rng_state(rng)
        noise = torch.randn(8, *gan.latent, dtype=dtype)
        yield result, example_step(*twins, *theirs, real, noise), twins
    assert ("paired: yes" in step.explain()) == options.get("paired", True)


@pytest.mark.parametrize("build", [tiny_dcgan, tiny_mlp])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_step_has_the_numbers_of_the_pytorch_example(build, paired, channels_last):
    gan = build()
    before = copy.deepcopy(gan.generator.state_dict())
    options = {"paired": paired, "channels_last": channels_last}
    followed = list(follow_the_example(gan, torch.float64, **options))
    for ours, theirs, _ in followed:
        assert ours == pytest.approx(theirs, rel=1e-7)
    for model, twin in zip(gan[:2], followed[-1][2], strict=True):
        expected = list(twin.state_dict().values())
        for (name, actual), value in zip(model.state_dict().items(), expected, strict=True):
            # A bias before a normalisation has no gradient but rounding, which Adam enlarges.
            if name not in ("model.2.bias", "model.5.bias", "model.8.bias"):
                torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-7)
    assert any((before[k] != v).any() for k, v in gan.generator.state_dict().items())


@pytest.mark.parametrize("paired", [True, False])
def test_float32_stays_within_rounding_of_the_example(paired):
    for ours, theirs, _ in follow_the_example(tiny_dcgan(), torch.float32, paired=paired):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_stay_near_the_example(precision):
    gan = tiny_dcgan()
    for ours, theirs, _ in follow_the_example(gan, torch.float32, precision=precision):
        assert ours == pytest.approx(theirs, rel=0.1)
    assert {p.dtype for m in gan[:2] for p in m.parameters()} == {torch.float32}


class Convolutions(TorchDispatchMode):
    """Note the dtypes and layouts of convolutions, and how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []
        self.inputs: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.dtypes.append(args[0].dtype)
            self.inputs.append(args[0].detach())
        return func(*args, **(kwargs or {}))


def test_options_reach_the_convolutions():
    (real,) = batches(1, torch.float32)
    counts = {}
    for paired in (True, False):
        step = make_step(tiny_dcgan(), paired=paired, precision="bf16", channels_last=True)
        step(real)
        with Convolutions() as seen:
            step(real)
        assert set(seen.dtypes) == {torch.bfloat16}
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen.inputs)
        counts[paired] = len(seen.dtypes)
    assert counts == {True: 3 + 2 * 3, False: 3 + 3 * 3}


class HostReads(TorchDispatchMode):
    """Count the operations that make the host wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_step_does_not_wait_for_the_device() -> None:
    gan = tiny_dcgan()
    # Plain SGD, for Adam reads its own step counters, which lie on the host.
    optimizers = [torch.optim.SGD(m.parameters(), 1e-3) for m in gan[:2]]
    step = GANStep(gan.generator, gan.discriminator, *optimizers, GANLoss(), gan.latent)
    with HostReads() as reads:
        result = step(torch.zeros(8, 1, 16, 16))
        assert reads.count == 0
        result.d_loss.item()
        assert reads.count == 1
    assert not any(value.requires_grad for value in result)


def test_frozen_generator_layers_stay_as_they_are() -> None:
    gan = tiny_dcgan()
    first = gan.generator.main[0].weight
    first.requires_grad_(False)
    before = first.clone()
    optimizers = [torch.optim.Adam(m.parameters(), 1e-2) for m in gan[:2]]
    GANStep(*gan[:2], *optimizers, GANLoss(), gan.latent)(torch.zeros(8, 1, 16, 16))
    assert torch.equal(first, before)


class BatchDeviation(nn.Module):
    """Append the batch's deviation to every image, as progressive GANs do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * x.std(0, keepdim=True)


class OnlyFloat32(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(1, dtype=torch.float32).matmul(x.new_ones(1))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm2d(4), "main.0 is torch's BatchNorm2d; ganfast.fuse"),
        (BatchDeviation(), "one pass gives other scores"),
        (nn.Dropout(0.5), "one pass gives other scores"),
        (nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)), "one pass gives other scores"),
        (OnlyFloat32(), "it could not be tried: RuntimeError"),
        (nn.GroupNorm(2, 4), None),
        (nn.InstanceNorm2d(4), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_forbid_pairing_are_found(layer, reason):
    gan = tiny_dcgan()
    gan.discriminator.main[1] = nn.Sequential(nn.LeakyReLU(0.2), layer)
    name = "main.1.1"
    step = make_step(gan)
    assert "to be decided" in step.explain()
    step(next(batches(1, torch.float32)))
    said = step.explain()
    if reason is None:
        assert "paired: yes" in said
    else:
        assert f"paired: no: {reason.replace('main.0', name)}" in said


def test_a_cpu_pairs_where_asked_only():
    step = make_step(tiny_dcgan(), paired=None)
    assert "paired: no: it takes memory" in step.explain()


def test_two_passes_let_go_of_one_before_the_other():
    """At no time do scores of real and of generated images both have a graph."""
    gan, alive = tiny_dcgan(), []
    judge = gan.discriminator.forward

    def forward(images):
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            scores = judge(images)
        alive.append(Kept.count)
        return scores

    class Kept:
        count = 0

        def __init__(self, tensor):
            self.tensor = tensor.detach()
            Kept.count += 1

        def __del__(self):
            Kept.count -= 1

    gan.discriminator.forward = forward
    (real,) = batches(1, torch.float32)
    make_step(gan, paired=False, r1=1.0)(real)
    assert alive[0] > 0
    assert alive == [alive[0]] * 3


def test_pairing_leaves_the_layers_as_they_were():
    gan = tiny_dcgan()
    gan.discriminator.main[3].splits = 1
    before = copy.deepcopy(gan.discriminator.state_dict())
    step = make_step(gan)
    step.pairing.probe(Batch(next(batches(1, torch.float32))))
    for name, value in gan.discriminator.state_dict().items():
        assert torch.equal(value, before[name]), name
    step(next(batches(1, torch.float32)))
    assert {m.splits for m in gan.discriminator.modules() if hasattr(m, "splits")} == {1}
    assert gan.discriminator.main[3].num_batches_tracked == 3


@pytest.mark.parametrize("kind", ["hinge", "wasserstein"])
@pytest.mark.parametrize("paired", [True, False])
def test_gradient_penalty_is_the_papers(kind, paired):
    gan = tiny_dcgan()
    for model in gan[:2]:
        model.double()
    discriminator = copy.deepcopy(gan.discriminator)
    generator = copy.deepcopy(gan.generator)
    step = make_step(gan, 0.0, loss=GANLoss(kind), paired=paired, penalty=10.0)
    (real,) = batches(1)
    rng = torch.get_rng_state()
    measured = step(real).d_loss
    torch.set_rng_state(rng)
    fake = generator(torch.randn(8, *gan.latent, dtype=torch.float64)).detach()
    expected, *_ = GANLoss(kind).discriminator(discriminator(real), discriminator(fake))
    share = torch.rand(8, 1, 1, 1, dtype=torch.float64)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    expected = expected + 10 * ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
    torch.testing.assert_close(measured, expected.detach())
    expected.backward()
    for ours, theirs in zip(
        gan.discriminator.parameters(), discriminator.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("paired", [True, False])
def test_r1_is_the_papers(paired):
    gan = tiny_dcgan()
    for model in gan[:2]:
        model.double()
    discriminator, generator = (copy.deepcopy(m) for m in (gan.discriminator, gan.generator))
    step = make_step(gan, 0.0, paired=paired, r1=10.0)
    (real,) = batches(1)
    rng = torch.get_rng_state()
    measured = step(real).d_loss
    torch.set_rng_state(rng)
    fake = generator(torch.randn(8, *gan.latent, dtype=torch.float64)).detach()
    real.requires_grad_()
    scores = discriminator(real)
    (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    expected = GANLoss().discriminator(scores, discriminator(fake))[0]
    expected = expected + 5 * (gradient**2).sum((1, 2, 3)).mean()
    torch.testing.assert_close(measured, expected.detach())
    expected.backward()
    for ours, theirs in zip(
        gan.discriminator.parameters(), discriminator.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_average_follows_weights_and_statistics():
    gan = tiny_dcgan()
    step = make_step(gan, ema=0.2)
    expected = {k: v.clone() for k, v in gan.generator.state_dict().items()}
    for t, real in enumerate(batches(4, torch.float32)):
        step(real)
        keep = [1 / 10, 2 / 11, 0.2, 0.2][t]
        for name, new in gan.generator.state_dict().items():
            old = expected[name]
            mixed = keep * old + (1 - keep) * new if new.is_floating_point() else new
            expected[name] = mixed.clone()
    average = step.average.generator
    assert not average.training
    torch.testing.assert_close(dict(average.state_dict()), expected)
    again = make_step(tiny_dcgan(), ema=0.2)
    again.load_state_dict(step.state_dict())
    torch.testing.assert_close(dict(again.average.generator.state_dict()), expected)
    again.average.update(gan.generator)
    step.average.update(gan.generator)
    torch.testing.assert_close(again.average.generator.state_dict(), average.state_dict())
    with pytest.raises(ValueError, match="average"):
        make_step(tiny_dcgan()).load_state_dict(step.state_dict())


def test_latents_may_come_from_a_function():
    gan = tiny_dcgan()
    asked = []

    def draw(count: int) -> torch.Tensor:
        asked.append(count)
        return torch.randn(count, *gan.latent)

    GANStep(*gan[:2], *adams(gan), GANLoss(), draw)(next(batches(1, torch.float32)))
    assert asked == [8]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, auto, got 'fp8'"),
        ({"capture": "perhaps"}, "capture must be one of auto, always, never"),
        ({"capture": "always"}, "cannot be captured: the networks are on the cpu"),
        ({"penalty": -1.0}, "must not be negative"),
        ({"precision": "fp16", "r1": 1.0}, "use precision='bf16'"),
        ({"ema": 1.0}, r"must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make_step(tiny_dcgan(), **options)


def test_explain_says_why_nothing_is_captured():
    assert "captured: no: the networks are on the cpu" in make_step(tiny_dcgan()).explain()
    assert "captured: no: not asked for" in make_step(tiny_dcgan(), capture="never").explain()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_have_the_numbers_of_uncaptured_ones(precision):
    found = {}
    for capture in ("always", "never"):
        gan = tiny_dcgan()
        for model in gan[:2]:
            model.cuda()
        step = make_step(gan, capture=capture, precision=precision, ema=0.9)
        torch.manual_seed(3)
        losses = []
        for index, real in enumerate(batches(STEPS, torch.float32)):
            if index == 10:
                for group in step.optimizer_g.param_groups:
                    group["lr"] = 1e-4
            losses.append([x.item() for x in step(real.cuda())])
        found[capture] = losses, [p.detach() for m in gan[:2] for p in m.parameters()]
    for ours, theirs in zip(*(found[c][0] for c in ("always", "never")), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2 if precision == "bf16" else 1e-3)
    for ours, theirs in zip(*(found[c][1] for c in ("always", "never")), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-2, atol=1e-2 if precision == "bf16" else 1e-3
        )


@pytest.mark.gpu
@needs_gpu
def test_another_shape_of_batch_is_captured_anew():
    gan = tiny_dcgan()
    for model in gan[:2]:
        model.cuda()
    step = make_step(gan, capture="always")
    for size in (8, 4, 8):
        for real in batches(6, torch.float32, size):
            result = step(real.cuda())
    assert all(torch.isfinite(value) for value in result)
    assert gan.discriminator.main[3].num_batches_tracked == 3 * 18
