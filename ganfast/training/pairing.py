"""One pass of the discriminator over real and generated images, with the numbers of two passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ganfast.training.batch import Batch, Scores, as_list
from ganfast.training.processes import Processes

__all__ = ["Pairing", "split", "split_layers"]

PROBED = 4
"""Images of each kind that a probe takes: what depends on the batch shows with few."""


class Pairing:
    """Score two batches in one pass if that changes no number.

    ganfast's BatchNorm layers normalise the two halves apart (``splits``). Whether every other
    layer treats images one by one is tried on the first batch: a float64 copy of the discriminator
    scores a few images both ways, and unless scores and buffers agree, two passes are made from
    then on. Dropout, spectral_norm in training and minibatch statistics are found this way.

    Args:
        discriminator: maps images to scores.
        refused: why the batches are not paired at all; None to try it.
    """

    def __init__(self, discriminator: nn.Module, refused: str | None) -> None:
        self.discriminator = discriminator
        self._reason = refused
        self._probed = refused is not None
        self._layers = split_layers(discriminator)

    def probe(self, batch: Batch, processes: Processes | None = None) -> None:
        """Try on the first batch whether both ways agree, in all processes."""
        if not self._probed:
            self._probed = True
            self._reason = self._why_not(batch)
            # Else synchronised layers would meet the collectives of other layers.
            if (processes or Processes()).any(self._reason is not None):
                self._reason = self._reason or "another process found that it cannot be done"

    def explain(self) -> str:
        """Say whether batches are paired, and why not."""
        if not self._probed:
            return "to be decided on the first batch"
        return "yes" if self._reason is None else f"no: {self._reason}"

    @property
    def possible(self) -> bool:
        """Whether one pass is wanted and, as far as was tried, has the numbers of two."""
        return self._reason is None

    def judge(self, discriminator: Callable[..., Scores], batch: Batch, fake: Tensor) -> Scores:
        """Return the scores of real and generated images, in this order, from one pass.

        ``discriminator`` is that of this object, perhaps compiled.
        """
        return _judge(discriminator, self._layers, batch, fake)

    def _why_not(self, batch: Batch) -> str | None:
        for name, module in self.discriminator.named_modules():
            if isinstance(module, _BatchNorm) and not hasattr(module, "splits") and module.training:
                return (
                    f"{name or 'the discriminator'} is torch's {type(module).__name__}; "
                    "ganfast.fuse or ganfast.nn has one that normalises two batches apart"
                )
        try:
            agree = self._agree(batch.first(PROBED))
        except Exception as error:  # a forward may fail in any way in float64
            return f"it could not be tried: {type(error).__name__}: {error}".partition("\n")[0]
        return None if agree else "one pass gives other scores or buffers than two"

    def _agree(self, batch: Batch) -> bool:
        one, two = (copy.deepcopy(self.discriminator).double() for _ in range(2))
        batch = batch._replace(real=batch.real.double())
        device = batch.real.device
        generator = torch.Generator(device).manual_seed(0)
        noise = torch.randn(
            batch.real.shape, generator=generator, device=device, dtype=batch.real.dtype
        )
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            layers = split_layers(one)
            paired = as_list(_judge(one, layers, batch, noise))
            apart = [as_list(two(images, *batch.condition)) for images in (batch.real, noise)]
        scores = [torch.cat(pair) for pair in zip(*apart, strict=True)]
        found, expected = [*paired, *one.buffers()], [*scores, *two.buffers()]
        return all(map(torch.allclose, found, expected))


def _judge(
    discriminator: Callable[..., Scores], layers: list[nn.Module], batch: Batch, fake: Tensor
) -> Scores:
    condition = (torch.cat([labels, labels]) for labels in batch.condition)
    with split(layers, 2):
        scores: Scores = discriminator(torch.cat([batch.real, fake]), *condition)
    return scores


def split_layers(network: nn.Module) -> list[Any]:
    """Return ganfast's BatchNorm layers of a network, which can normalise several batches apart."""
    return [layer for layer in network.modules() if hasattr(layer, "splits")]


@contextmanager
def split(layers: list[Any], batches: int) -> Iterator[None]:
    """Have layers normalise each of several batches apart, joined to one and of one size."""
    for layer in layers:
        layer.splits *= batches
    try:
        yield
    finally:
        for layer in layers:
            layer.splits //= batches
