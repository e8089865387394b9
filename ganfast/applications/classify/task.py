"""The task that a method of classification gets, and the interface of a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ganfast.applications.consistency import Consistency
from ganfast.machine import native_precisions, require_native
from ganfast.models.dcgan import IMAGE_SIZES
from ganfast.training import Batches, ImageData
from ganfast.training.batches import as_float
from ganfast.training.options import POSITIVE, WEIGHT, Range, option

__all__ = ["SETTLING_BATCHES", "Method", "MethodBuilder", "Options", "Task"]

SETTLING_BATCHES = 40
"""Batches from which the statistics of BatchNorm are taken at the end."""

PROBABILITY = Range(float, lambda value: 0 <= value <= 1, "must be from 0 to 1")


@dataclass(frozen=True)
class Options:
    """Options of networks and training, the same for every method."""

    image_size: int = option(28, "side of the images in pixels", choices=IMAGE_SIZES)
    width: int = option(16, "feature maps of the first convolution", POSITIVE)
    latent: int = 100  # length of the noise
    batch_size: int = option(64, "images of each kind in a batch", POSITIVE)
    noise: float = 0.2  # standard deviation of the noise on images in [-1, 1] in training
    decay: float = 0.99  # of the average of weights that classifies
    consistency: float = option(
        1.0, "weight of pseudo-labels, which hold for an image however it is moved; 0: none", WEIGHT
    )
    threshold: float = option(0.9, "least probability of a pseudo-label", PROBABILITY)
    shift: float = option(0.11, "most that images are shifted by, as a share of their side", WEIGHT)
    degrees: float = option(15.0, "most that images are turned by", WEIGHT)
    stretch: float = option(0.15, "most that images grow or shrink by, as a share", WEIGHT)
    precision: str = option(
        "auto",
        "bf16: by torch.autocast; auto: bf16 where the device has instructions for it",
        choices=("auto", "bf16", "fp32"),
    )

    def computing(self, device: torch.device | str) -> str:
        """Return the precision that networks compute in on a device, bf16 or fp32.

        Raises:
            ValueError: the device has no instructions for the one that was chosen.
        """
        device = torch.device(device)
        if self.precision == "auto":
            return "bf16" if "bf16" in native_precisions(device) else "fp32"
        require_native(self.precision, device)
        return self.precision


class Task:
    """A training set of which few images have labels; it holds no other labels.

    Args:
        images: all of the training set.
        labelled: indices ``[L]`` of images with a label.
        labels: of these, ``[L]``, 0 to ``classes - 1``.
        classes: their number.
        options: their batch size is that of ``unlabelled`` and ``labelled_batch``; their movements
            are those of ``labelled_batch`` and ``consistency``.
        seed: of the order of the images; the caller seeds torch with it too.
        device: of the batches.

    Attributes:
        unlabelled: shuffled batches of all images, without end.
        consistency: loss on unlabelled images.

    Raises:
        DataError: there are fewer images than one batch.
    """

    def __init__(
        self,
        images: ImageData,
        labelled: Tensor,
        labels: Tensor,
        classes: int,
        options: Options,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.classes = classes
        self.channels = images.image_shape[0]
        self.device = torch.device(device)
        self.batch_size = options.batch_size
        self.unlabelled = Batches(images, self.batch_size, seed=seed, device=device)
        self.labelled_images = as_float(images.images[labelled]).to(device)
        self.labels = labels.to(device)
        self._rng = torch.Generator().manual_seed(seed)
        shares = self.labels.bincount(minlength=classes) / len(labels)
        self.consistency = Consistency(
            shares, options.shift, options.degrees, options.stretch, options.threshold,
            options.consistency, self._rng,
        )  # fmt: skip

    def labelled_batch(self) -> tuple[Tensor, Tensor]:
        """Draw a batch of labelled images, with replacement and moved, and their labels."""
        chosen = torch.randint(len(self.labels), (self.batch_size,), generator=self._rng)
        return self.consistency.moved(self.labelled_images[chosen]), self.labels[chosen]


class Method(Protocol):
    """Learn from a task, update after update, and classify."""

    def update(self, share: float) -> None:
        """Make one update of every network with this share of the learning rate."""

    def finish(self) -> None:
        """End the training, after the last update."""

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each of the images ``[N, C, H, W]`` in [-1, 1], as ``[N]``."""


MethodBuilder = Callable[[Task, Options], Method]
