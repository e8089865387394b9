"""What a method of classification is given, and what it must answer."""

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
    """How networks are built and trained, the same for every method.

    Attributes:
        image_size: side of the images in pixels: 16, 32, 64, 128 or 256.
        width: feature maps of the first convolution.
        latent: length of the generator's noise.
        batch_size: of unlabelled, of labelled and of generated images.
        noise: standard deviation of the noise on images in [-1, 1] in training.
        decay: of the average of weights that classifies at the end.
    """

    image_size: int = option(16, "side of the images in pixels", choices=IMAGE_SIZES)
    width: int = option(16, "feature maps of the first convolution", POSITIVE)
    latent: int = 100
    batch_size: int = option(50, "images of each kind in a batch", POSITIVE)
    noise: float = 0.2
    decay: float = 0.99


class Task:
    """A training set of which few images have labels; no other label is in it.

    Args:
        images: all of the training set.
        labelled: indices ``[L]`` of images with a label.
        labels: theirs, ``[L]``, 0 to ``classes - 1``.
        classes: how many there are.
        batch_size: of what ``unlabelled`` and ``labelled_batch`` give.
        seed: of the order of the images; whoever builds a task seeds torch with it too.
        device: where batches are made.

    Attributes:
        unlabelled: shuffled batches of all images, for ever.

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
        """Draw as many labelled images as a batch has, with replacement, and their labels."""
        chosen = torch.randint(len(self.labels), (self.batch_size,), generator=self._rng)
        return self.labelled_images[chosen], self.labels[chosen]


class Method(Protocol):
    """Learn from a task, update after update, and classify."""

    def update(self, share: float) -> None:
        """Make one update of every network, by this share of the learning rate."""

    def finish(self) -> None:
        """Do what follows the last update."""

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each of the images ``[N, C, H, W]`` in [-1, 1], as ``[N]``."""


MethodBuilder = Callable[[Task, Options], Method]
