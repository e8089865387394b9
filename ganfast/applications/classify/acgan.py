"""Classification by an auxiliary classifier GAN that sees labelled and unlabelled images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast import models
from ganfast.applications.acgan import ACGANTraining
from ganfast.applications.classify.averaged import AveragedMethod
from ganfast.applications.classify.task import Options, Task
from ganfast.applications.updates import adam, in_one_pass, placed

__all__ = ["AuxiliaryClassifier"]

LEARNING_RATE = 5e-4


class AuxiliaryClassifier(AveragedMethod):
    """Train a conditional GAN whose discriminator also names the class.

    Labelled and generated images count in the loss of the classes, unlabelled and generated ones in
    that of a GAN, and the classes of unlabelled images by their consistency; all are seen with
    noise.

    Source:
        Odena et al. 2017, section 3, https://arxiv.org/abs/1610.09585
    """

    def __init__(self, task: Task, options: Options) -> None:
        self.gan = models.acgan(
            options.image_size, task.channels, options.width, options.latent, task.classes
        )
        for network in self.gan[:2]:
            placed(network, task.device)
        self.noise = options.noise
        optimizers = [adam(network) for network in self.gan[:2]]
        self._training = ACGANTraining(
            self.gan, optimizers, self._judge, names_generated=True,
            consistency=task.consistency if options.consistency else None,
        )  # fmt: skip
        super().__init__(task, self.gan.discriminator, options.decay)

    def update(self, share: float) -> None:
        """Update the discriminator, then the generator."""
        labelled, labels = self.task.labelled_batch()
        real = next(self.task.unlabelled)
        wanted = torch.randint(self.task.classes, labels.shape, device=real.device)
        noise = torch.randn(len(real), *self.gan.latent, device=real.device)
        self._training.update(labelled, labels, noise, wanted, share * LEARNING_RATE, real)
        self.average.update(self.gan.discriminator)

    def _judge(self, *batches: Tensor) -> list[tuple[Tensor, Tensor]]:
        noisy = [images + self.noise * torch.randn_like(images) for images in batches]
        return in_one_pass(self.gan.discriminator, self.gan.discriminator, *noisy)

    def logits(self, network: Any, images: Tensor) -> Tensor:
        """Return the second output of the discriminator."""
        logits: Tensor = network(images)[1]
        return logits
