"""Methods that classify with an average of a network's weights over its updates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.applications.classifier import finite, settle
from ganfast.applications.classify.task import SETTLING_BATCHES, Task
from ganfast.training.ema import WeightAverage

__all__ = ["AveragedMethod"]


class AveragedMethod:
    """Average the weights of a network, and classify with the average.

    Args:
        task: to learn.
        network: that learns to classify; ``update`` calls ``self.average.update`` with it.
        decay: of the average.
    """

    def __init__(self, task: Task, network: nn.Module, decay: float) -> None:
        self.task = task
        self.average = WeightAverage(network, decay)

    def finish(self) -> None:
        """Take the statistics of batches of images for the average."""
        settle(self.average.generator, islice(self.settling_images(), SETTLING_BATCHES))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image, ``[N]``."""
        return finite(self.logits(self.average.generator, images)).argmax(1)

    def settling_images(self) -> Iterator[Tensor]:
        """Yield the batches that ``finish`` takes statistics of."""
        return self.task.unlabelled

    def logits(self, network: Any, images: Tensor) -> Tensor:
        """Return the logits of the classes ``[N, K]`` from a network and images."""
        logits: Tensor = network(images)
        return logits
