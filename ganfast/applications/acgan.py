"""The training of an auxiliary classifier GAN: a conditional GAN that also names the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from ganfast.applications.consistency import Consistency
from ganfast.applications.updates import descend
from ganfast.models import ConditionalGAN
from ganfast.nn import GANLoss

__all__ = ["ACGANTraining"]

Judge = Callable[..., Sequence[tuple[Tensor, Tensor]]]
"""Maps batches of images to the scores ``[N]`` and the logits of classes ``[N, K]`` of each."""


class ACGANTraining:
    """Update the discriminator, then the generator.

    The loss of the discriminator is that of a GAN plus the cross-entropy of the classes of labelled
    images, and of generated ones with ``names_generated``; the loss of the generator is that of a
    GAN plus ``class_weight`` times the cross-entropy of the classes of generated images.

    Args:
        gan: to train.
        optimizers: of the generator and of the discriminator.
        judge: applies the discriminator, and what else is done to the images it sees.
        names_generated: whether the classifier learns from generated images too.
        class_weight: of the classes in the generator's loss.
        consistency: of the classes of unlabelled images; None for none.

    Source:
        Odena et al. 2017, section 3, https://arxiv.org/abs/1610.09585
    """

    def __init__(
        self,
        gan: ConditionalGAN,
        optimizers: Sequence[Optimizer],
        judge: Judge,
        *,
        names_generated: bool,
        class_weight: float = 1.0,
        consistency: Consistency | None = None,
    ) -> None:
        self._generator = gan.generator
        self._adam_g, self._adam_d = optimizers
        self._judge = judge
        self._names_generated = names_generated
        self._class_weight = class_weight
        self._consistency = consistency
        self._loss = GANLoss()

    def update(
        self,
        labelled: Tensor,
        labels: Tensor,
        noise: Tensor,
        wanted: Tensor,
        rate: float,
        unlabelled: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Make one update of both networks.

        Args:
            labelled: real images ``[N, C, H, W]``.
            labels: of them, ``[N]``.
            noise: ``[N, *latent]``, for the generated images.
            wanted: classes of the generated images, ``[N]``.
            rate: the learning rate.
            unlabelled: real images that are compared with the generated ones in place of the
                labelled ones.

        Returns:
            The losses of the discriminator and of the generator.
        """
        fake = self._generator(noise, wanted).to(labelled.dtype)  # autocast's is another
        consistency, others = self._consistency, []
        if unlabelled is not None:
            others = consistency.views(unlabelled) if consistency else [unlabelled]
        known, *judged, (fake_scores, named) = self._judge(labelled, *others, fake.detach())
        compared = judged[0] if judged else known
        d_loss = self._loss.discriminator(compared[0], fake_scores)[0]
        d_loss = d_loss + functional.cross_entropy(known[1], labels)
        if consistency and judged:
            d_loss = d_loss + consistency.loss(judged[0][1], judged[1][1])
        if self._names_generated:
            d_loss = d_loss + functional.cross_entropy(named, wanted)
        descend(self._adam_d, d_loss, rate)
        ((fake_scores, named),) = self._judge(fake)
        naming = self._class_weight * functional.cross_entropy(named, wanted)
        g_loss = self._loss.generator(fake_scores) + naming
        descend(self._adam_g, g_loss, rate)
        return d_loss.detach(), g_loss.detach()
