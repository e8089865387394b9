"""A semi-supervised GAN, whose discriminator is the classifier, and that classifier on its own."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from ganfast import models
from ganfast.applications.classifier import AveragedClassifier
from ganfast.applications.classify.task import SETTLING_BATCHES, Options, Task
from ganfast.applications.updates import adam, as_if_apart, descend
from ganfast.nn import GANLoss

__all__ = [
    "SemiSupervised",
    "Supervised",
    "conditional_entropy",
    "discriminator_loss",
    "feature_matching_loss",
]

LEARNING_RATE = 4e-3
ENTROPY_WEIGHT = 0.3


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Measure how badly logits of classes ``[N, K]`` tell real from generated images.

    With ``Z = sum(exp(logits))`` and ``D = Z / (Z + 1)``: the mean of ``-log D`` over the real
    images and that of ``-log(1 - D)`` over the generated ones, by halves. ``D`` is the sigmoid of
    ``logsumexp(logits)``, so this is a GAN's usual loss, and no exponential overflows.

    Source:
        Salimans et al. 2016, section 5, https://arxiv.org/abs/1606.03498
    """
    return GANLoss().discriminator(real.logsumexp(1), fake.logsumexp(1))[0] / 2


def feature_matching_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Measure how far the mean features of generated images are from those of real ones.

    Args:
        real: features of real images, ``[N, F]``; a constant.
        fake: of generated images, ``[N, F]``.

    Source:
        Salimans et al. 2016, section 3.1, https://arxiv.org/abs/1606.03498
    """
    return (real.detach().mean(0) - fake.mean(0)).square().mean()


def conditional_entropy(logits: Tensor) -> Tensor:
    """Measure how undecided logits of classes ``[N, K]`` are: the mean entropy of their softmax.

    Source:
        Dai et al. 2017, https://arxiv.org/abs/1705.09783, which adds it to this GAN's loss
    """
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def _build(task: Task, options: Options) -> models.SemiSupervisedGAN:
    gan = models.sgan(
        options.image_size, task.channels, options.width, options.latent, task.classes,
        options.noise,
    )  # fmt: skip
    for network in gan[:2]:
        network.to(task.device)
    return gan


class SemiSupervised:
    """Train classifier and generator in turn, the generator by feature matching.

    The classifier's loss is Salimans' and, beyond it, a weighted conditional entropy of its answers
    on unlabelled images.
    """

    def __init__(self, task: Task, options: Options) -> None:
        self.task = task
        self.gan = _build(task, options)
        self._adam_g, self._adam_d = (adam(network) for network in self.gan[:2])
        self._average = AveragedClassifier(self.gan.classifier, options.decay)

    def update(self, share: float) -> None:
        """Update the classifier on images of all three kinds, then the generator."""
        generator, classifier = self.gan[:2]
        labelled, labels = self.task.labelled_batch()
        real = next(self.task.unlabelled)
        fake = generator(torch.randn(len(real), *self.gan.latent, device=real.device))
        features = as_if_apart(classifier, classifier.features, labelled, real, fake.detach())
        known, of_real, of_fake = (classifier.head(part) for part in features)
        loss = functional.cross_entropy(known, labels) + discriminator_loss(of_real, of_fake)
        loss = loss + ENTROPY_WEIGHT * conditional_entropy(of_real)
        descend(self._adam_d, loss, share * LEARNING_RATE)
        # Of the real images, the features from before the update serve: a pass less.
        matching = feature_matching_loss(features[1], classifier.features(fake))
        descend(self._adam_g, matching, share * LEARNING_RATE)
        self._average.update(classifier)

    def finish(self) -> None:
        """Take the statistics of unlabelled images for the average of weights."""
        self._average.settle(islice(self.task.unlabelled, SETTLING_BATCHES))

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image, ``[N]``."""
        return self._average.predict(images)


class Supervised:
    """Train the same classifier on the labelled images alone."""

    def __init__(self, task: Task, options: Options) -> None:
        self.task = task
        self.classifier = _build(task, options).classifier
        self._adam = adam(self.classifier)
        self._average = AveragedClassifier(self.classifier, options.decay)

    def update(self, share: float) -> None:
        """Update the classifier on a batch of labelled images."""
        images, labels = self.task.labelled_batch()
        descend(
            self._adam,
            functional.cross_entropy(self.classifier(images), labels),
            share * LEARNING_RATE,
        )
        self._average.update(self.classifier)

    def finish(self) -> None:
        """Take the statistics of labelled images for the average of weights."""
        batches = (self.task.labelled_batch()[0] for _ in range(SETTLING_BATCHES))
        self._average.settle(batches)

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image, ``[N]``."""
        return self._average.predict(images)
