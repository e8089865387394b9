"""Consistency: the same answer for an image, however it is moved."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ganfast.applications.shifts import moved, shifted

__all__ = ["Consistency"]

FOLLOWED = 0.99
"""Decay of the average of predicted classes that alignment compares with their shares."""


class Consistency:
    """Learn from unlabelled images by pseudo-labels.

    The class predicted for a hardly moved image is the label of the same image moved more, if the
    prediction is sure. Predictions are first aligned: multiplied by the classes' shares over the
    average of predictions, so that no class takes over another's images.

    Args:
        shares: of the classes among unlabelled images, ``[K]``, on the device to train on.
        shift, degrees, stretch: of images moved more, as :func:`ganfast.applications.shifts.moved`
            takes them.
        threshold: least probability of a prediction that counts.
        weight: of the loss.
        rng: of the movements, on the CPU.

    Source:
        Sohn et al. 2020 (FixMatch), https://arxiv.org/abs/2001.07685; alignment: Berthelot et al.
        2020 (ReMixMatch), section 3.1, https://arxiv.org/abs/1911.09785

    Examples:
        >>> import torch
        >>> from ganfast.applications.consistency import Consistency
        >>> rng = torch.Generator().manual_seed(0)
        >>> consistency = Consistency(torch.tensor([0.5, 0.5]), 0.1, 0, 0, 0.9, 1, rng)
        >>> sure, unsure = torch.tensor([[9.0, -9.0]]), torch.zeros(1, 2)
        >>> round(consistency.loss(sure, unsure).item(), 4), consistency.loss(unsure, sure).item()
        (0.6931, 0.0)
    """

    def __init__(
        self,
        shares: Tensor,
        shift: float,
        degrees: float,
        stretch: float,
        threshold: float,
        weight: float,
        rng: torch.Generator,
    ) -> None:
        self._shares = shares
        self._movement = (shift, degrees, stretch)
        self._threshold = threshold
        self._weight = weight
        self._rng = rng
        self._average = shares.clone()

    def moved(self, images: Tensor) -> Tensor:
        """Return the images ``[N, C, H, W]`` as the network is to learn them."""
        return moved(images, *self._movement, self._rng)

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the images ``[N, C, H, W]`` shifted by one pixel at most, and moved more."""
        return [shifted(images, 1 / images.shape[-1], self._rng), self.moved(images)]

    def loss(self, hardly_moved: Tensor, moved: Tensor) -> Tensor:
        """Return the weighted mean cross-entropy of moved images, 0 for those it is not sure of.

        Args:
            hardly_moved: logits ``[N, K]`` of hardly moved images, whose classes are the labels.
            moved: logits ``[N, K]`` of the same images moved more.
        """
        with torch.no_grad():
            chances = hardly_moved.softmax(1)
            self._average.lerp_(chances.mean(0), 1 - FOLLOWED)
            chances = chances * self._shares / self._average
            sureness, labels = (chances / chances.sum(1, keepdim=True)).max(1)
        losses = functional.cross_entropy(moved, labels, reduction="none")
        return self._weight * (losses * (sureness >= self._threshold)).mean()
