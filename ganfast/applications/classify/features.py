"""A linear classifier on pixels, or on features of a discriminator trained without labels."""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganfast import models
from ganfast.applications.classifier import finite, settle
from ganfast.applications.classify.task import SETTLING_BATCHES, Options, Task
from ganfast.applications.updates import adam, placed, set_rate
from ganfast.nn import BatchNorm2d, GANLoss
from ganfast.training import GANStep

__all__ = ["DiscriminatorFeatures", "LinearMachine", "Pixels", "pooled_features"]

GRID = 4  # side to which every layer's maps are max-pooled
LEARNING_RATE = 5e-4  # the default of "ganfast train"
PENALTIES = (1e-4, 1e-3, 1e-2)
"""Values of C to choose among."""
FOLDS = 5
MAX_ITERATIONS = 10_000
COPIES = 20
"""Moved copies of each labelled image, of which the machine learns from features."""


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


class LinearMachine:
    """Fit a support vector machine with squared hinge loss (L2-SVM) to features of labelled images.

    Unlabelled images tell each feature's mean and deviation. The penalty C is chosen by
    cross-validation on the labelled images, if each class has two.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._scaler: Any = None
        self._machine: Any = None

    def finish(self) -> None:
        """Fit the machine."""
        from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        unlabelled = torch.cat(list(islice(self.task.unlabelled, SETTLING_BATCHES)))
        self._scaler = StandardScaler().fit(self._features(unlabelled))
        images = self.examples()
        labels, copies = self.task.labels.cpu(), len(images) // len(self.task.labels)
        of_image = torch.arange(len(labels)).repeat(copies)
        # The primal solver takes twice the time, also with more images than features.
        self._machine = LinearSVC(
            C=PENALTIES[0], dual=True, max_iter=MAX_ITERATIONS, random_state=0
        )
        folds = min(FOLDS, int(labels.bincount().min()))
        fitted = {}
        if folds > 1:  # copies of an image on both sides of a fold would tell nothing
            self._machine = GridSearchCV(
                self._machine, {"C": PENALTIES}, cv=StratifiedGroupKFold(folds)
            )
            fitted["groups"] = of_image.numpy()
        found = self._scaler.transform(self._features(images))
        self._machine.fit(found, labels[of_image].numpy(), **fitted)

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image, ``[N]``."""
        found = self._scaler.transform(self._features(images))
        return torch.from_numpy(self._machine.predict(found))

    def _features(self, images: Tensor) -> Any:
        return finite(self.features(images)).float().cpu().numpy()

    def examples(self) -> Tensor:
        """Return images to learn from ``[M * L, C, H, W]``: the labelled ones in order, M times."""
        return self.task.labelled_images

    def features(self, images: Tensor) -> Tensor:
        """Return what the machine sees of images, ``[N, F]``."""
        return images.flatten(1)


class Pixels(LinearMachine):
    """Fit the machine to the pixels: what features are to be compared with.

    Moved copies would make it worse: no plane through the pixels separates them.
    """

    def __init__(self, task: Task, options: Options) -> None:
        super().__init__(task)

    def update(self, share: float) -> None:
        """Do nothing: no network is trained."""


class DiscriminatorFeatures(LinearMachine):
    """Train a DCGAN without labels, then the machine on its discriminator's features."""

    def __init__(self, task: Task, options: Options) -> None:
        super().__init__(task)
        self.gan = models.dcgan(options.image_size, task.channels, options.width, options.latent)
        generator, discriminator = (placed(network, task.device) for network in self.gan[:2])
        self._optimizers = (adam(generator), adam(discriminator))
        self._step = GANStep(
            generator, discriminator, *self._optimizers, GANLoss(), self.gan.latent,
            precision=options.computing(task.device),
            capture="never",  # a graph would keep the first learning rate
        )  # fmt: skip

    def update(self, share: float) -> None:
        """Make one step of a GAN."""
        for optimizer in self._optimizers:
            set_rate(optimizer, share * LEARNING_RATE)
        self._step(next(self.task.unlabelled))

    def finish(self) -> None:
        """Fit the machine to the features of the trained discriminator."""
        settle(self.gan.discriminator.eval(), islice(self.task.unlabelled, SETTLING_BATCHES))
        super().finish()

    def examples(self) -> Tensor:
        """Return moved copies of the labelled images, ``[20 * L, C, H, W]``, time after time."""
        images = self.task.labelled_images
        return torch.cat([self.task.consistency.moved(images) for _ in range(COPIES)])

    def features(self, images: Tensor) -> Tensor:
        """Return the features of every layer, ``[N, F]``."""
        layers = self.gan.discriminator.get_submodule("main")
        return pooled_features(cast(nn.Sequential, layers), images)
