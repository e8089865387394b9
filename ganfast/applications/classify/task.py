"""The task that a method of classification gets, and the interface of a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ganfast.models.dcgan import IMAGE_SIZES
from ganfast.training import Batches, ImageData
from ganfast.training.batches import as_float
from ganfast.training.options import POSITIVE, option

__all__ = ["SETTLING_BATCHES", "Method", "MethodBuilder", "Options", "Task"]

SETTLING_BATCHES = 40
"""Batches from which the statistics of BatchNorm are taken at the end."""


@dataclass(frozen=True)
class Options:
    """Options of networks and training, the same for every method."""

    image_size: int = option(16, "side of the images in pixels", choices=IMAGE_SIZES)
    width: int = option(16, "feature maps of the first convolution", POSITIVE)
    latent: int = 100  # length of the noise
    batch_size: int = option(50, "images of each kind in a batch", POSITIVE)
    noise: float = 0.2  # standard deviation of the noise on images in [-1, 1] in training
    decay: float = 0.99  # of the average of weights that classifies


class Task:
    """A training set of which few images have labels; it holds no other labels.

    Args:
        images: all of the training set.
        labelled: indices ``[L]`` of images with a label.
        labels: of these, ``[L]``, 0 to ``classes - 1``.
        classes: their number.
        batch_size: of what ``unlabelled`` and ``labelled_batch`` give.
        seed: of the order of the images; the caller seeds torch with it too.
        device: of the batches.

    Attributes:
        unlabelled: shuffled batches of all images, without end.

    Raises:
        DataError: there are fewer images than one batch.
    """

    def __init__(
        self,
        images: ImageData,
        labelled: Tensor,
        labels: Tensor,
        classes: int,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.classes = classes
        self.channels = images.image_shape[0]
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.unlabelled = Batches(images, batch_size, seed=seed, device=device)
        self.labelled_images = as_float(images.images[labelled]).to(device)
        self.labels = labels.to(device)
        self._rng = torch.Generator().manual_seed(seed)

    def labelled_batch(self) -> tuple[Tensor, Tensor]:
        """Draw a batch of labelled images, with replacement, and their labels."""
        chosen = torch.randint(len(self.labels), (self.batch_size,), generator=self._rng)
        return self.labelled_images[chosen], self.labels[chosen]


class Method(Protocol):
    """Learn from a task, update after update, and classify."""

    def update(self, share: float) -> None:
        """Make one update of every network with this share of the learning rate."""

    def finish(self) -> None:
        """End the training, after the last update."""

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each of the images ``[N, C, H, W]`` in [-1, 1], as ``[N]``."""


MethodBuilder = Callable[[Task, Options], Method]
