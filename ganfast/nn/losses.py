"""Losses of one kernel each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ganfast import functional
from ganfast.functional.losses import check_gan_loss

__all__ = ["BCELoss", "BCEWithLogitsLoss", "GANLoss", "LeCamRegularization"]


class BCELoss(torch.nn.BCELoss):
    """Measure the binary cross-entropy of probabilities: torch's BCELoss in one kernel.

    The target may be a number. Differences from torch, shapes and errors are those of
    :func:`ganfast.functional.binary_cross_entropy`.

    Examples:
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

    Examples:
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
        kind: "bce", "hinge", "lsgan" or "wasserstein"; "softplus" is "bce" of logits.
        from_logits: for "bce", whether scores are logits rather than probabilities.
        real_label: target for real images; below 1 for smoothed labels.
        fake_label: target for generated images.

    Shapes, formulas, errors and sources are those of
    :func:`ganfast.functional.gan_discriminator_loss`.

    Examples:
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
        self,
        real: Tensor | Sequence[Tensor],
        fake: Tensor | Sequence[Tensor] | None = None,
        *,
        splits: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss and the mean scores of real and generated images.

        Scores are two tensors, or one with the real half first and ``splits=2``; or lists of them,
        of a discriminator at several scales.
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

    def generator(self, fake: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the generator's loss from the scores of its images."""
        return functional.gan_generator_loss(
            fake, kind=self.kind, from_logits=self.from_logits, real_label=self.real_label
        )

    def extra_repr(self) -> str:
        return (
            f"{self.kind!r}, from_logits={self.from_logits}, "
            f"real_label={self.real_label}, fake_label={self.fake_label}"
        )


class LeCamRegularization(torch.nn.Module):
    """Keep the averages of a discriminator's scores, and pull its new scores towards them.

    In training each call first takes the mean scores into the averages, whose weights add up to 1
    from the first call on. In evaluation they stay. Each process of several has its own. Shapes,
    formula and source are those of :func:`ganfast.functional.lecam_regularization`.

    Args:
        decay: of the averages.

    Raises:
        ValueError: ``decay`` does not lie between 0 and 1.

    Examples:
        >>> LeCamRegularization()(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.0]))
        tensor(8.5000)
    """

    real_average: Tensor
    fake_average: Tensor
    updates: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        with torch.no_grad():
            if self.training:
                self.updates += 1
                # (1 - decay) / (1 - decay^updates), which is 1 at first
                updates = self.updates.to(self.real_average.dtype)
                share = (self.decay - 1) / torch.expm1(updates * math.log(self.decay))
                for average, scores in ((self.real_average, real), (self.fake_average, fake)):
                    average.lerp_(scores.mean(dtype=average.dtype), share)
        return functional.lecam_regularization(real, fake, self.real_average, self.fake_average)

    def extra_repr(self) -> str:
        return f"decay={self.decay}"
