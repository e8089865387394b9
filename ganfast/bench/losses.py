"""Benchmark cases of the GAN losses, beside the lines of the usual training script."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ganfast.bench.case import (
    BACKENDS,
    PASSES,
    SUITES,
    Case,
    Options,
    Providers,
    Rotation,
    Suite,
    checked,
)  # fmt: skip
from ganfast.nn import GANLoss
from ganfast.ops.losses import reference

__all__ = ["SHAPES", "suite"]

Call = Callable[..., tuple[Tensor, ...]]

SHAPES: tuple[tuple[int, ...], ...] = ((64,), (128,), (128, 1, 30, 30), (2**24,))
"""Scores of a batch of DCGAN, of PatchGAN, and more than any cache holds."""


def suite(options: Options) -> Iterator[Case]:
    """Yield the cases of ``ganfast bench losses``: the discriminator's and the generator's.

    Both start from logits. The peers apply the sigmoid, fill label tensors and call
    binary_cross_entropy, as the PyTorch DCGAN example does; for the discriminator they do so twice,
    add, and take the two mean scores.
    """
    networks: dict[str, tuple[Call, Call]] = {
        "discriminator loss": (_our_discriminator, _script_discriminator),
        "generator loss": (_our_generator, _script_generator),
    }
    for passes in options.passes or PASSES[:2]:
        for shape, (name, functions) in itertools.product(
            options.shapes or SHAPES, networks.items()
        ):
            yield _case(name, functions, passes, shape, options)


SUITES["losses"] = Suite(suite, ("eager", "compile", *BACKENDS))

_criterion = GANLoss()


def _our_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
    return _criterion.discriminator(real, fake)


def _script_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
    scores = real.sigmoid(), fake.sigmoid()
    return reference.discriminator_loss(*scores, "probabilities", real_label=1.0, fake_label=0.0)


def _our_generator(fake: Tensor) -> tuple[Tensor, ...]:
    return (_criterion.generator(fake),)


def _script_generator(fake: Tensor) -> tuple[Tensor, ...]:
    return (reference.mean_loss(fake.sigmoid(), "probabilities", label=1.0),)


def _case(
    name: str,
    functions: tuple[Call, Call],
    passes: str,
    shape: tuple[int, ...],
    options: Options,
) -> Case:
    ours, script = functions
    tensors = 2 if ours is _our_discriminator else 1
    # Scores are read; in backward read again, and their gradients written.
    moved = (1 if passes == "forward" else 3) * tensors * math.prod(shape) * 4
    inputs = options.inputs(moved)
    memory = ("sum",) if passes == "forward" else ()

    def build() -> Providers:
        torch.manual_seed(0)
        functions = dict.fromkeys(("ganfast", *options.against), ours)
        if "eager" in functions:
            functions["eager"] = script
        if "compile" in functions:
            torch._dynamo.reset()
            functions["compile"] = torch.compile(script, dynamic=False)
        calls: dict[str, list[Callable[[], Any]]] = {name: [] for name in (*functions, *memory)}
        for _ in range(inputs):
            scores = [torch.randn(shape, device=options.device) for _ in range(tensors)]
            for name in memory:
                calls[name].append(scores[0].sum)
            scores = [x.detach().requires_grad_() for x in scores]
            for name, function in functions.items():
                calls[name].append(_call(passes, function, scores))
        tolerance = 1e-6 * math.sqrt(max(100, math.prod(shape)))
        checked({name: calls[name][0] for name in functions}, tolerance)
        return {name: each[0] if inputs == 1 else Rotation(each) for name, each in calls.items()}

    names = ("ganfast", *options.against, *memory)
    return Case("x".join(map(str, shape)), name, passes, build, names, bytes_moved=moved)


def _call(passes: str, function: Call, scores: list[Tensor]) -> Callable[[], Any]:
    if passes == "forward":
        return lambda: function(*scores)

    def forward_and_backward() -> tuple[Tensor, ...]:
        loss, *mean_scores = function(*scores)
        gradients = torch.autograd.grad(loss, scores)
        return loss, *mean_scores, *gradients

    return forward_and_backward
