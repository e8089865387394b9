"""Losses of one kernel each."""

from __future__ import annotations

import torch
from torch import Tensor

from ganfast import functional
from ganfast.functional.losses import check_gan_loss

__all__ = ["BCELoss", "BCEWithLogitsLoss", "GANLoss"]


class BCELoss(torch.nn.BCELoss):
    """Measure the binary cross-entropy of probabilities: torch's BCELoss in one kernel.

    The target may be a number. Differences from torch, shapes and errors are those of
    :func:`ganfast.functional.binary_cross_entropy`.

    Example::

        >>> BCELoss()(torch.tensor([0.9, 0.6]), 1.0)
        tensor(0.3081)
    """

    def forward(self, input: Tensor, target: Tensor | float) -> Tensor:
        return functional.binary_cross_entropy(
            input, target, self._buffers["weight"], reduction=self.reduction
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """Measure the binary cross-entropy of logits: torch's BCEWithLogitsLoss in one kernel.

    The target may be a number. Differences from torch, shapes and errors are those of
    :func:`ganfast.functional.binary_cross_entropy_with_logits`.

    Example::

        >>> BCEWithLogitsLoss()(torch.tensor([2.0, -1.0]), 1.0)
        tensor(0.7201)
    """

    def forward(self, input: Tensor, target: Tensor | float) -> Tensor:
        weight, pos_weight = self._buffers["weight"], self._buffers["pos_weight"]
        return functional.binary_cross_entropy_with_logits(
            input, target, weight, reduction=self.reduction, pos_weight=pos_weight
        )


class GANLoss(torch.nn.Module):
    """Hold the settings of a GAN's two losses.

    Args:
        kind: "bce", "hinge", "lsgan" or "wasserstein".
        from_logits: for "bce", whether scores are logits rather than probabilities.
        real_label: target for real images; below 1 for smoothed labels.
        fake_label: target for generated images.

    Shapes, formulas, errors and sources are those of
    :func:`ganfast.functional.gan_discriminator_loss`.

    Example::

        >>> criterion = GANLoss(real_label=0.9)
        >>> scores = torch.zeros(4, requires_grad=True)
        >>> loss, real_score, fake_score = criterion.discriminator(scores, torch.zeros(4))
        >>> loss.backward()
        >>> criterion.generator(scores).shape
        torch.Size([])
    """

    def __init__(
        self,
        kind: str = "bce",
        from_logits: bool = True,
        real_label: float = 1.0,
        fake_label: float = 0.0,
    ) -> None:
        super().__init__()
        check_gan_loss(kind, real_label, fake_label)
        self.kind = kind
        self.from_logits = from_logits
        self.real_label = real_label
        self.fake_label = fake_label

    def discriminator(
        self, real: Tensor, fake: Tensor | None = None, *, splits: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss and the mean scores of real and generated images.

        Scores are two tensors, or one with the real half first and ``splits=2``.
        """
        return functional.gan_discriminator_loss(
            real,
            fake,
            kind=self.kind,
            from_logits=self.from_logits,
            real_label=self.real_label,
            fake_label=self.fake_label,
            splits=splits,
        )

    def generator(self, fake: Tensor) -> Tensor:
        """Return the generator's loss from the scores of its images."""
        return functional.gan_generator_loss(
            fake, kind=self.kind, from_logits=self.from_logits, real_label=self.real_label
        )

    def extra_repr(self) -> str:
        return (
            f"{self.kind!r}, from_logits={self.from_logits}, "
            f"real_label={self.real_label}, fake_label={self.fake_label}"
        )
