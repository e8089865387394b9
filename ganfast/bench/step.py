"""The case of ``ganfast bench step``: one update of a DCGAN's two networks, images a second."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.bench.case import BACKENDS, SUITES, Case, Options, Providers, Suite, checked
from ganfast.bench.exactness import twin
from ganfast.models import GAN, dcgan
from ganfast.nn import BatchNorm2d, GANLoss
from ganfast.training import GANStep

__all__ = ["plain", "suite"]

SHAPES: tuple[tuple[int, ...], ...] = ((64, 1, 32, 32), (64, 3, 64, 64))
"""Batch, channels and sides of the images: MNIST's padded to 32, and the paper's."""

WIDTH = {32: 32, 64: 64}


def suite(options: Options) -> Iterator[Case]:
    """Yield the cases: ganfast's step and layers beside the PyTorch example's loop and layers."""
    for shape in options.shapes or SHAPES:
        yield _case(shape, options)


SUITES["step"] = Suite(suite, ("eager", "compile", *BACKENDS))


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of a model with torch's own BatchNorm and activation for every fused layer."""
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BatchNorm2d):
                setattr(module, name, twin(child))
    return copied


def _case(shape: tuple[int, ...], options: Options) -> Case:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"a step's shape is NxCxSxS, square images, got {shape}")
    names = ("ganfast", *options.against)

    def build() -> Providers:
        _, channels, size, _ = shape
        torch.manual_seed(0)
        gan = dcgan(image_size=size, channels=channels, width=WIDTH.get(size, 64))
        real = torch.randn(shape).tanh().to(options.device)
        providers = {name: _provider(name, _for(name, gan), real, options.device) for name in names}
        return checked(providers, 1e-3, seed=lambda: torch.manual_seed(1))

    return Case("x".join(map(str, shape)), "DCGAN float32", "step", build, names, images=shape[0])


def _for(name: str, gan: GAN) -> GAN:
    """Return a copy of the networks, with torch's own layers for a peer that is not ganfast."""
    networks = [plain(n) if name in ("eager", "compile") else copy.deepcopy(n) for n in gan[:2]]
    return gan._replace(generator=networks[0], discriminator=networks[1])


def _provider(name: str, gan: GAN, real: Tensor, device: str) -> Callable[[], tuple[Tensor, ...]]:
    generator: Any
    discriminator: Any
    generator, discriminator = (network.to(device) for network in gan[:2])
    adam_g, adam_d = (
        torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999))
        for network in (generator, discriminator)
    )
    if name not in ("eager", "compile"):
        step = GANStep(generator, discriminator, adam_g, adam_d, GANLoss(), gan.latent)
        return lambda: tuple(step(real))
    if name == "compile":
        generator, discriminator = (torch.compile(n) for n in (generator, discriminator))
    criterion = nn.BCELoss()

    def loop() -> tuple[Tensor, ...]:
        """Follow https://github.com/pytorch/examples/blob/main/dcgan/main.py line by line."""
        discriminator.zero_grad()
        label = torch.full((real.shape[0],), 1.0, device=device)
        output = discriminator(real).sigmoid()
        d_loss_real = criterion(output, label)
        d_loss_real.backward()
        real_score = output.mean().detach()
        noise = torch.randn(real.shape[0], *gan.latent, device=device)
        fake = generator(noise)
        label.fill_(0.0)
        output = discriminator(fake.detach()).sigmoid()
        d_loss_fake = criterion(output, label)
        d_loss_fake.backward()
        fake_score = output.mean().detach()
        adam_d.step()
        generator.zero_grad()
        label.fill_(1.0)
        g_loss = criterion(discriminator(fake).sigmoid(), label)
        g_loss.backward()
        adam_g.step()
        return (d_loss_real + d_loss_fake).detach(), g_loss.detach(), real_score, fake_score

    return loop
