"""An auxiliary classifier GAN, with a label loss on labelled and generated images."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from ganfast import models
from ganfast.applications.classify.networks import AveragedClassifier, adam, descend, in_one_pass
from ganfast.applications.classify.task import SETTLING_BATCHES, Options, Task
from ganfast.nn import GANLoss

__all__ = ["AuxiliaryClassifier"]

LEARNING_RATE = 5e-4


class AuxiliaryClassifier:
    """Train a conditional GAN whose discriminator also names the class.

    Labelled and generated images count in the loss of the labels, all images in that of being real.

    Source:
        Odena et al. 2017, section 3, https://arxiv.org/abs/1610.09585
    """

    def __init__(self, task: Task, options: Options) -> None:
        self.task = task
        self.gan = models.acgan(
            options.image_size, task.channels, options.width, options.latent, task.classes
        )
        for network in self.gan[:2]:
            network.to(task.device)
        self.noise = options.noise
        self.loss = GANLoss()
        self._adam_g, self._adam_d = (adam(network) for network in self.gan[:2])
        self._average = AveragedClassifier(
            self.gan.discriminator, options.decay, lambda network, images: network(images)[1]
        )

    def update(self, share: float) -> None:
        """Update the discriminator, then the generator."""
        generator, discriminator = self.gan[:2]
        labelled, labels = self.task.labelled_batch()
        real = next(self.task.unlabelled)
        wanted = torch.randint(self.task.classes, labels.shape, device=real.device)
        fake = generator(torch.randn(len(real), *self.gan.latent, device=real.device), wanted)
        known, of_real, of_fake = self._judge(labelled, real, fake.detach())
        loss = self.loss.discriminator(of_real[0], of_fake[0])[0]
        loss = loss + functional.cross_entropy(known[1], labels)
        loss = loss + functional.cross_entropy(of_fake[1], wanted)
        descend(self._adam_d, loss, share * LEARNING_RATE)
        (judged,) = self._judge(fake)
        loss = self.loss.generator(judged[0]) + functional.cross_entropy(judged[1], wanted)
        descend(self._adam_g, loss, share * LEARNING_RATE)
        self._average.update(discriminator)

    def _judge(self, *batches: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each batch's scores and logits of classes, from images with noise."""
        noisy = [images + self.noise * torch.randn_like(images) for images in batches]
        return in_one_pass(self.gan.discriminator, self.gan.discriminator, *noisy)

    def finish(self) -> None:
        """Take the statistics of unlabelled images for the average of weights."""
        self._average.settle(islice(self.task.unlabelled, SETTLING_BATCHES))

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image, ``[N]``."""
        return self._average.predict(images)
