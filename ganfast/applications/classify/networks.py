"""What the methods do alike with their networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer

from ganfast.training import DivergenceError
from ganfast.training.ema import WeightAverage
from ganfast.training.pairing import split, split_layers

__all__ = ["AveragedClassifier", "adam", "descend", "finite", "in_one_pass", "set_rate", "settle"]


def adam(network: nn.Module) -> Adam:
    """Build the optimizer of a network; its learning rate comes with each update."""
    return Adam(network.parameters(), betas=(0.5, 0.999), fused=True)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set an optimizer's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(optimizer: Optimizer, loss: Tensor, rate: float) -> None:
    """Update what an optimizer holds, without gradients for any other network."""
    set_rate(optimizer, rate)
    optimizer.zero_grad()
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()


def in_one_pass(
    network: nn.Module, function: Callable[[Tensor], Any], *batches: Tensor
) -> list[Any]:
    """Apply a network's function to batches of one size in one pass, with the numbers of several.

    ganfast's BatchNorm layers then normalise each batch with its own statistics (``splits``).

    Returns:
        Of each batch, what the function gives: a tensor, or a tuple of tensors.
    """
    with split(split_layers(network), len(batches)):
        found = function(torch.cat(batches))
    if isinstance(found, Tensor):
        return list(found.chunk(len(batches)))
    return list(zip(*(part.chunk(len(batches)) for part in found), strict=True))


def finite(values: Tensor) -> Tensor:
    """Return what a trained network gives.

    Raises:
        DivergenceError: it is not finite, so the training has failed.
    """
    if not values.isfinite().all():
        raise DivergenceError("the networks give values that are not finite: training diverged")
    return values


@torch.no_grad()
def settle(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give BatchNorm layers of a network in evaluation mode the mean statistics of batches.

    Those from training saw other weights, and generated images.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
        layer.train()
    for batch in batches:
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


class AveragedClassifier:
    """Classify with an average of a network's weights over its updates.

    Args:
        network: to follow.
        decay: of the average.
        logits: of the classes, from the network and images.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float,
        logits: Callable[[Any, Tensor], Tensor] = lambda network, images: network(images),
    ) -> None:
        self._average = WeightAverage(network, decay)
        self._logits = logits

    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights."""
        self._average.update(network)

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Take BatchNorm's statistics from batches of images."""
        settle(self._average.generator, batches)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image, ``[N]``."""
        return finite(self._logits(self._average.generator, images)).argmax(1)
