"""A linear classifier on the features of a discriminator that was trained without labels."""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganfast import models
from ganfast.applications.classifier import finite, settle
from ganfast.applications.classify.task import SETTLING_BATCHES, Options, Task
from ganfast.applications.updates import adam, set_rate
from ganfast.nn import BatchNorm2d, GANLoss
from ganfast.training import GANStep

__all__ = ["DiscriminatorFeatures", "pooled_features"]

GRID = 4  # side to which every layer's maps are max-pooled
LEARNING_RATE = 5e-4  # the default of "ganfast train"
PENALTY = 0.01  # C of the support vector machine
MAX_ITERATIONS = 10_000


@torch.no_grad()
def pooled_features(discriminator: nn.Sequential, images: Tensor) -> Tensor:
    """Return the features of every layer but the last, max-pooled to 4x4 maps, ``[N, F]``.

    Source:
        Radford et al. 2015, section 5.1, https://arxiv.org/abs/1511.06434
    """
    found = []
    for layer in discriminator[:-1]:
        images = layer(images)
        if isinstance(layer, nn.LeakyReLU | BatchNorm2d):  # fused with its activation
            found.append(functional.adaptive_max_pool2d(images, GRID).flatten(1))
    return torch.cat(found, 1)


class DiscriminatorFeatures:
    """Train a DCGAN without labels, then a support vector machine on its features."""

    def __init__(self, task: Task, options: Options) -> None:
        self.task = task
        self.gan = models.dcgan(options.image_size, task.channels, options.width, options.latent)
        generator, discriminator = (network.to(task.device) for network in self.gan[:2])
        self._optimizers = (adam(generator), adam(discriminator))
        self._step = GANStep(
            generator, discriminator, *self._optimizers, GANLoss(), self.gan.latent,
            capture="never",  # a graph would keep the first learning rate
        )  # fmt: skip
        self._machine: Any = None

    def update(self, share: float) -> None:
        """Make one step of a GAN."""
        for optimizer in self._optimizers:
            set_rate(optimizer, share * LEARNING_RATE)
        self._step(next(self.task.unlabelled))

    def finish(self) -> None:
        """Fit the linear classifier to the labelled images' features."""
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        settle(self.gan.discriminator.eval(), islice(self.task.unlabelled, SETTLING_BATCHES))
        machine = LinearSVC(C=PENALTY, max_iter=MAX_ITERATIONS, random_state=0)
        self._machine = make_pipeline(StandardScaler(), machine)
        self._machine.fit(self._features(self.task.labelled_images), self.task.labels.cpu().numpy())

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image, ``[N]``."""
        return torch.from_numpy(self._machine.predict(self._features(images)))

    def _features(self, images: Tensor) -> Any:
        layers = self.gan.discriminator.get_submodule("main")
        found = pooled_features(cast(nn.Sequential, layers), images)
        return finite(found).cpu().numpy()
