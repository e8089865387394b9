"""Benchmark cases of the GAN losses, beside the lines of the usual training script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from ganfast.bench.case import PASSES, SUITES, Case, Options, check_results
from ganfast.nn import GANLoss

__all__ = ["SHAPES", "cases"]

Call = Callable[..., tuple[Tensor, ...]]

SHAPES: tuple[tuple[int, ...], ...] = ((64,), (128,), (128, 1, 30, 30), (2**24,))
"""Scores of a DCGAN's batch, of a PatchGAN's, and enough of them to fill memory."""


def cases(
    passes: str,
    *,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    against: tuple[str, ...] = ("eager", "compile"),
    device: str = "cpu",
) -> list[Case]:
    """Build the cases of the discriminator's and the generator's loss, checked for equal values.

    Both start from logits. The peers apply the sigmoid, fill label tensors and call
    binary_cross_entropy, as the PyTorch DCGAN example does; for the discriminator they do so twice,
    add, and take the two mean scores.

    Args:
        passes: "forward" or "forward+backward".
        shapes: of the scores.
        against: "eager" and "compile" (the same lines, compiled).
        device: where.

    Raises:
        AssertionError: a provider computes something else.
    """
    networks: dict[str, tuple[Call, Call]] = {
        "discriminator loss": (_our_discriminator, _script_discriminator),
        "generator loss": (_our_generator, _script_generator),
    }
    return [
        _case(name, functions, passes, shape, against, device)
        for name, functions in networks.items()
        for shape in shapes
    ]


def suite(options: Options) -> Iterator[Case]:
    """Yield the cases of ``ganfast bench losses``."""
    for passes in options.passes or PASSES[:2]:
        for shape in options.shapes or SHAPES:
            yield from cases(
                passes, shapes=(shape,), against=options.against, device=options.device
            )


SUITES["losses"] = suite

_criterion = GANLoss()


def _our_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
    return _criterion.discriminator(real, fake)


def _script_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
    real_probability, fake_probability = real.sigmoid(), fake.sigmoid()
    real_loss = torch_functional.binary_cross_entropy(
        real_probability, torch.full_like(real_probability, 1.0, requires_grad=False)
    )
    fake_loss = torch_functional.binary_cross_entropy(
        fake_probability, torch.full_like(fake_probability, 0.0, requires_grad=False)
    )
    return real_loss + fake_loss, real_probability.mean(), fake_probability.mean()


def _our_generator(fake: Tensor) -> tuple[Tensor, ...]:
    return (_criterion.generator(fake),)


def _script_generator(fake: Tensor) -> tuple[Tensor, ...]:
    probability = fake.sigmoid()
    label = torch.full_like(probability, 1.0, requires_grad=False)
    return (torch_functional.binary_cross_entropy(probability, label),)


def _case(
    name: str,
    functions: tuple[Call, Call],
    passes: str,
    shape: tuple[int, ...],
    against: tuple[str, ...],
    device: str,
) -> Case:
    torch.manual_seed(0)
    ours, script = functions
    count = 2 if ours is _our_discriminator else 1
    scores = [torch.randn(shape, device=device).requires_grad_() for _ in range(count)]
    calls: dict[str, Call] = {"ganfast": ours}
    if "eager" in against:
        calls["eager"] = script
    if "compile" in against:
        torch._dynamo.reset()
        calls["compile"] = torch.compile(script, dynamic=False)
    providers = {name: _provider(passes, call, scores) for name, call in calls.items()}
    tolerance = 1e-6 * math.sqrt(math.prod(shape)) if math.prod(shape) > 100 else 1e-5
    check_results({name: provider() for name, provider in providers.items()}, tolerance)
    x = scores[0].detach()
    if passes == "forward":
        providers["sum"] = x.sum
    # Scores are read; in backward read again, and their gradients written.
    moved = (1 if passes == "forward" else 3) * count * math.prod(shape) * x.element_size()
    return Case(f"{name} {tuple(shape)}", passes, providers, bytes_moved=moved)


def _provider(passes: str, call: Call, scores: list[Tensor]) -> Callable[[], Any]:
    if passes == "forward":
        return lambda: call(*scores)

    def forward_and_backward() -> tuple[Tensor, ...]:
        loss, *mean_scores = call(*scores)
        gradients = torch.autograd.grad(loss, scores)
        return loss, *mean_scores, *gradients

    return forward_and_backward
