"""The case of ``ganfast bench step``: one update of a DCGAN's two networks, images a second."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.bench.case import (
    BACKENDS,
    SUITES,
    Case,
    Options,
    Providers,
    Suite,
    checked,
    serving,
)
from ganfast.bench.floor import FLOORS, floor
from ganfast.bench.footprint import Footprint, footprint
from ganfast.bench.peers import BF16
from ganfast.models import GAN, dcgan, stock
from ganfast.nn import GANLoss
from ganfast.training import GANStep

__all__ = ["suite"]

SHAPES: tuple[tuple[int, ...], ...] = (
    (64, 1, 32, 32), (128, 1, 32, 32), (64, 3, 64, 64), (128, 3, 64, 64), (32, 3, 128, 128),
)  # fmt: skip
"""Batch, channels, height and width: MNIST padded to 32, the paper's images, whose batch is 128,
and larger images, where the last layers of the generator hold most of the memory."""

WIDTH = {32: 32, 64: 64}

INGREDIENTS = ("layers", "losses", "paired", "compiled", "all-bf16")
"""Peers between the plain loop and ganfast's step, each with one more of its parts; and bf16."""

OPTIONS: dict[str, dict[str, Any]] = {
    "minimal": {"paired": False, "channels_last": False, "capture": "never"},
    "losses": {"paired": False, "channels_last": False},
    "paired": {"paired": True, "channels_last": False},
    "compiled": {"compile": True},
    "all-bf16": {"precision": "bf16", "channels_last": True},
}
"""Options of GANStep, by provider."""


def suite(options: Options) -> Iterator[Case]:
    """Yield the cases: ganfast's step and layers beside the PyTorch example's loop and layers.

    "ganfast" is the step in float32 with all that keeps its numbers: fused layers, the loss in one
    kernel, the faster layout, real and generated images paired on a GPU, and Adam in one kernel.
    Peers: "eager" and "compile" are the example's loop; "bf16" the same, channels-last, under
    torch.autocast; "layers" the same with fused layers, "losses" ganfast's unpaired step, "paired"
    the paired one with torch's default Adam, both contiguous, "compiled" ganfast's step with
    compile=True, "all-bf16" that with precision="bf16", channels-last. The floors are the step's
    convolutions alone, in either layout.
    """
    for shape in options.shapes or SHAPES:
        yield _case(shape, options)


SUITES["step"] = Suite(
    suite,
    ("eager", "compile", "bf16", *INGREDIENTS, *BACKENDS),
    ("passes", "dtype", "layout", "cold"),
)


def _case(shape: tuple[int, ...], options: Options) -> Case:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"a step's shape is NxCxSxS, square images, got {shape}")
    names = ("ganfast", *options.against)

    def start() -> tuple[GAN, Tensor]:
        _, channels, size, _ = shape
        torch.manual_seed(0)
        gan = dcgan(image_size=size, channels=channels, width=WIDTH.get(size, 64))
        return gan, torch.randn(shape).tanh().to(options.device)

    def build() -> Providers:
        gan, real = start()
        calls = {name: _call(name, gan, real) for name in names}
        checked(calls, 1e-3, seed=lambda: torch.manual_seed(1), rough=BF16)
        minimal = _call("minimal", gan, real)  # it computes no gradient that it does not use
        return calls | {f: floor(minimal, layout, real.device) for f, layout in FLOORS.items()}

    def footprints() -> dict[str, Footprint]:
        gan, real = start()
        found = {}
        for name in names:
            with serving(name):
                found[name] = footprint(partial(_call, name, gan, real), options.device)
        return found

    label = "x".join(map(str, shape))
    all_names = (*names, *FLOORS)
    return Case(label, "DCGAN", "step", build, all_names, images=shape[0], footprints=footprints)


def _call(name: str, gan: GAN, real: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Return one step of a provider, on networks of its own."""
    of_torch = name in ("eager", "compile", "bf16")
    generator: Any
    discriminator: Any
    copies = (stock(n) if of_torch else copy.deepcopy(n) for n in gan[:2])
    generator, discriminator = (network.to(real.device) for network in copies)
    fused = None if of_torch or name in ("layers", "losses", "paired") else True
    adam_g, adam_d = (
        torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999), fused=fused)
        for network in (generator, discriminator)
    )
    if name in ("compile", "compiled"):
        torch._dynamo.reset()  # after eight networks it would run the ninth uncompiled
    if name == "compile":
        generator, discriminator = torch.compile(generator), torch.compile(discriminator)
    if of_torch or name == "layers":
        bf16 = name == "bf16"
        return _loop(generator, discriminator, adam_g, adam_d, real, gan.latent, bf16=bf16)
    networks = generator, discriminator, adam_g, adam_d
    step = GANStep(*networks, GANLoss(), gan.latent, **OPTIONS.get(name, {}))
    return lambda: tuple(step(real))


def _loop(
    generator: Any,
    discriminator: Any,
    adam_g: torch.optim.Adam,
    adam_d: torch.optim.Adam,
    real: Tensor,
    latent: tuple[int, ...],
    *,
    bf16: bool,
) -> Callable[[], tuple[Tensor, ...]]:
    device = real.device
    if bf16:
        real = real.contiguous(memory_format=torch.channels_last)
        for network in (generator, discriminator):
            network.to(memory_format=torch.channels_last)
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    criterion = nn.BCELoss()

    def loop() -> tuple[Tensor, ...]:
        """Follow https://github.com/pytorch/examples/blob/main/dcgan/main.py line by line."""
        discriminator.zero_grad()
        label = torch.full((real.shape[0],), 1.0, device=device)
        with precision():
            output = discriminator(real).float().sigmoid()
        d_loss_real = criterion(output, label)
        d_loss_real.backward()
        real_score = output.mean().detach()
        noise = torch.randn(real.shape[0], *latent, device=device)
        with precision():
            fake = generator(noise)
        label.fill_(0.0)
        with precision():
            output = discriminator(fake.detach()).float().sigmoid()
        d_loss_fake = criterion(output, label)
        d_loss_fake.backward()
        fake_score = output.mean().detach()
        adam_d.step()
        generator.zero_grad()
        label.fill_(1.0)
        with precision():
            output = discriminator(fake).float().sigmoid()
        g_loss = criterion(output, label)
        g_loss.backward()
        adam_g.step()
        return (d_loss_real + d_loss_fake).detach(), g_loss.detach(), real_score, fake_score

    return loop
