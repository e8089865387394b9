"""A semi-supervised GAN, whose discriminator is the classifier, and that classifier without one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional

from ganfast import models
from ganfast.applications.classify.averaged import AveragedMethod
from ganfast.applications.classify.task import Options, Task
from ganfast.applications.updates import adam, descend, in_one_pass, placed
from ganfast.nn import GANLoss

__all__ = [
    "Consistent",
    "SemiSupervised",
    "Supervised",
    "discriminator_loss",
    "feature_matching_loss",
]

LEARNING_RATE = 2e-3
GENERATOR_RATE = 1e-3


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the GAN loss of a discriminator with logits of classes ``[N, K]``.

    With ``Z = sum(exp(logits))`` and ``D = Z / (Z + 1)``: half the mean of ``-log D`` over real
    images plus half that of ``-log(1 - D)`` over generated ones. ``D`` is the sigmoid of
    ``logsumexp(logits)``, so this is the usual GAN loss, and no exponential overflows.

    Source:
        Salimans et al. 2016, section 5, https://arxiv.org/abs/1606.03498
    """
    return GANLoss().discriminator(real.logsumexp(1), fake.logsumexp(1))[0] / 2


def feature_matching_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the squared distance between the mean features of generated and real images.

    Args:
        real: features of real images, ``[N, F]``; a constant.
        fake: of generated images, ``[N, F]``.

    Source:
        Salimans et al. 2016, section 3.1, https://arxiv.org/abs/1606.03498
    """
    return (real.detach().mean(0) - fake.mean(0)).square().mean()


def _build(task: Task, options: Options) -> models.SemiSupervisedGAN:
    gan = models.sgan(
        options.image_size, task.channels, options.width, options.latent, task.classes,
        options.noise,
    )  # fmt: skip
    for network in gan[:2]:
        placed(network, task.device)
    return gan


class SemiSupervised(AveragedMethod):
    """Train classifier and generator in turn, the generator by feature matching.

    The classifier's loss is that of Salimans et al. plus the consistency of unlabelled images.
    """

    def __init__(self, task: Task, options: Options) -> None:
        self.gan = _build(task, options)
        super().__init__(task, self.gan.classifier, options.decay)
        self._adam_g, self._adam_d = (adam(network) for network in self.gan[:2])
        self._consistent = options.consistency > 0

    def update(self, share: float) -> None:
        """Update the classifier on images of all kinds, then the generator."""
        generator, classifier = self.gan[:2]
        labelled, labels = self.task.labelled_batch()
        real = next(self.task.unlabelled)
        noise = torch.randn(len(real), *self.gan.latent, device=real.device)
        fake = generator(noise).to(real.dtype)  # autocast's is another
        views = self.task.consistency.views(real) if self._consistent else [real]
        known, *of_views, of_fake = in_one_pass(
            classifier, classifier.features_and_logits, labelled, *views, fake.detach()
        )
        loss = functional.cross_entropy(known[1], labels)
        loss = loss + discriminator_loss(of_views[0][1], of_fake[1])
        if self._consistent:
            loss = loss + self.task.consistency.loss(of_views[0][1], of_views[1][1])
        descend(self._adam_d, loss, share * LEARNING_RATE)
        # Features of the real images from before the update: one pass less.
        of_fake = classifier.features(fake).to(real.dtype)
        matching = feature_matching_loss(of_views[0][0], of_fake)
        descend(self._adam_g, matching, share * GENERATOR_RATE)
        self.average.update(classifier)


class Consistent(AveragedMethod):
    """Train the same classifier on labelled images and the consistency of unlabelled ones."""

    def __init__(self, task: Task, options: Options) -> None:
        self.classifier = _build(task, options).classifier
        super().__init__(task, self.classifier, options.decay)
        self._adam = adam(self.classifier)

    def update(self, share: float) -> None:
        """Update the classifier on images of both kinds."""
        images, labels = self.task.labelled_batch()
        views = self.task.consistency.views(next(self.task.unlabelled))
        known, *of_views = in_one_pass(self.classifier, self.classifier, images, *views)
        loss = functional.cross_entropy(known, labels) + self.task.consistency.loss(*of_views)
        descend(self._adam, loss, share * LEARNING_RATE)
        self.average.update(self.classifier)


class Supervised(AveragedMethod):
    """Train the same classifier on the labelled images alone."""

    def __init__(self, task: Task, options: Options) -> None:
        self.classifier = _build(task, options).classifier
        super().__init__(task, self.classifier, options.decay)
        self._adam = adam(self.classifier)

    def update(self, share: float) -> None:
        """Update the classifier on a batch of labelled images."""
        images, labels = self.task.labelled_batch()
        (known,) = in_one_pass(self.classifier, self.classifier, images)
        descend(self._adam, functional.cross_entropy(known, labels), share * LEARNING_RATE)
        self.average.update(self.classifier)

    def settling_images(self) -> Iterator[Tensor]:
        """Yield labelled batches."""
        return (self.task.labelled_batch()[0] for _ in count())
