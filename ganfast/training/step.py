"""One training step of a GAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

__all__ = ["GANStep", "StepResult"]

REAL, FAKE = 1.0, 0.0


class StepResult(NamedTuple):
    """What one step measured: scalars on the device, so that reading them is the caller's choice.

    ``real_score`` and ``fake_score`` are the mean probabilities the discriminator gave to real and
    generated images to be real, before its update.
    """

    d_loss: Tensor
    g_loss: Tensor
    real_score: Tensor
    fake_score: Tensor


class GANStep:
    """Update the discriminator, then the generator, once for a batch of real images.

    The discriminator sees real and generated images in two passes, its two losses are added, and
    the generator is scored by the updated discriminator (the "non-saturating" loss). It follows
    https://github.com/pytorch/examples/blob/main/dcgan/main.py number for number.

    Args:
        generator: maps noise ``[N, *latent]`` to images.
        discriminator: maps images to logits ``[N]``.
        optimizer_g: of the generator's parameters.
        optimizer_d: of the discriminator's parameters.
        latent: shape of one noise sample.

    Source:
        Goodfellow et al. 2014, algorithm 1 and section 3, https://arxiv.org/abs/1406.2661

    Example:
        >>> import torch
        >>> from ganfast.models import dcgan
        >>> from ganfast.training import GANStep
        >>> gan = dcgan(image_size=16, channels=1, width=8)
        >>> adam_g, adam_d = (torch.optim.Adam(m.parameters(), 2e-4) for m in gan[:2])
        >>> step = GANStep(gan.generator, gan.discriminator, adam_g, adam_d, gan.latent)
        >>> step(torch.zeros(4, 1, 16, 16)).d_loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizer_g: Optimizer,
        optimizer_d: Optimizer,
        latent: Sequence[int],
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.optimizer_g = optimizer_g
        self.optimizer_d = optimizer_d
        self.latent = tuple(latent)

    def __call__(self, real: Tensor) -> StepResult:
        """Take one step on real images ``[N, C, H, W]`` without waiting for the device."""
        noise = torch.randn(real.shape[0], *self.latent, device=real.device, dtype=real.dtype)
        fake = self.generator(noise)
        d_loss, real_score, fake_score = self._update_discriminator(real, fake.detach())
        g_loss = self._update_generator(fake)
        return StepResult(d_loss, g_loss, real_score, fake_score)

    def _update_discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.optimizer_d.zero_grad()
        real_loss, real_score = self._score(real, REAL)
        real_loss.backward()
        fake_loss, fake_score = self._score(fake, FAKE)
        fake_loss.backward()
        self.optimizer_d.step()
        return real_loss.detach() + fake_loss.detach(), real_score, fake_score

    def _update_generator(self, fake: Tensor) -> Tensor:
        self.optimizer_g.zero_grad()
        loss, _ = self._score(fake, REAL)
        # The discriminator's own gradients would be thrown away: ask only for the generator's.
        loss.backward(inputs=[p for p in self.generator.parameters() if p.requires_grad])
        self.optimizer_g.step()
        return loss.detach()

    def _score(self, images: Tensor, label: float) -> tuple[Tensor, Tensor]:
        """Return the loss of judging the images by the label, and their mean probability."""
        logits = self.discriminator(images)
        labels = torch.full_like(logits, label)
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        return loss, logits.detach().sigmoid().mean()
