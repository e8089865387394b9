"""A conditional DCGAN trained on few labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ganfast.applications.augment.shifts import shifted
from ganfast.models import ConditionalGAN, acgan
from ganfast.nn import GANLoss
from ganfast.training import DivergenceError
from ganfast.training.batches import as_bytes, as_float
from ganfast.training.ema import WeightAverage

__all__ = ["GeneratorOptions", "generate", "train_conditional"]

BATCH = 256  # images made at once


@dataclass(frozen=True)
class GeneratorOptions:
    """How the conditional DCGAN is built and trained.

    Attributes:
        updates: of both networks.
        batch_size: real images an update, drawn with replacement.
        width: feature maps beside the image.
        latent: length of the noise.
        learning_rate: of Adam, whose betas are 0.5 and 0.999.
        shift: how far the discriminator's images are moved, as a share of their side.
        decay: of the average of the generator's weights that makes the images.
        class_weight: of the classifier's loss in the generator's: less of it gives images of a
            class more variety, and more of them look like another class.
    """

    updates: int = 1000
    batch_size: int = 64
    width: int = 16
    latent: int = 64
    learning_rate: float = 1e-3
    shift: float = 0.125
    decay: float = 0.995
    class_weight: float = 1.0


def train_conditional(
    images: Tensor,
    labels: Tensor,
    classes: int,
    options: GeneratorOptions,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> ConditionalGAN:
    """Train on labelled images alone and return the networks, in evaluation mode.

    The discriminator sees real and generated images moved at random, so that few images are not
    learnt by heart. Its classifier learns from real images, and the generator from it: a
    classifier that also learnt from generated ones would take a wrong digit's class for granted.

    Args:
        images: uint8 ``[N, C, size, size]``.
        labels: ``[N]``, 0 to ``classes - 1``.
        classes: their number.
        options: of the networks and the training.
        seed: of every random number.
        device: where to train.

    Raises:
        DivergenceError: a loss is not finite at the end.
        ValueError: the images' size is none that a DCGAN makes.

    Source:
        Odena et al. 2017, section 3, https://arxiv.org/abs/1610.09585, with the losses above;
        Zhao et al. 2020, equations 4 and 5, https://arxiv.org/abs/2006.10738

    Example:
        >>> import torch
        >>> from ganfast.applications.augment import GeneratorOptions, train_conditional
        >>> images, labels = torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.arange(4) % 2
        >>> options = GeneratorOptions(updates=1, batch_size=4, width=4)
        >>> train_conditional(images, labels, 2, options, seed=0).image_shape
        (1, 16, 16)
    """
    channels, size, _ = images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gan = acgan(size, channels, options.width, options.latent, classes)
    rng = torch.Generator().manual_seed(seed)
    adam_g, adam_d = (
        torch.optim.Adam(network.to(device).parameters(), options.learning_rate, (0.5, 0.999))
        for network in gan[:2]
    )
    criterion = GANLoss()
    average = WeightAverage(gan.generator, options.decay)
    for _ in range(options.updates):
        chosen = torch.randint(len(images), (options.batch_size,), generator=rng)
        wanted = labels[chosen].to(device)
        noise = torch.randn(options.batch_size, *gan.latent, generator=rng).to(device)
        fake = gan.generator(noise, wanted)
        adam_d.zero_grad()
        real_scores, named = gan.discriminator(
            shifted(as_float(images[chosen]).to(device), options.shift, rng)
        )
        fake_scores, _ = gan.discriminator(shifted(fake.detach(), options.shift, rng))
        d_loss = criterion.discriminator(real_scores, fake_scores)[0]
        (d_loss + functional.cross_entropy(named, wanted)).backward()
        adam_d.step()
        adam_g.zero_grad()
        fake_scores, named = gan.discriminator(shifted(fake, options.shift, rng))
        naming = options.class_weight * functional.cross_entropy(named, wanted)
        g_loss = criterion.generator(fake_scores) + naming
        g_loss.backward(inputs=list(gan.generator.parameters()))
        adam_g.step()
        average.update(gan.generator)
    d_loss, g_loss = d_loss.detach(), g_loss.detach()
    if not bool(torch.isfinite(d_loss + g_loss)):
        raise DivergenceError(
            f"the conditional DCGAN's losses are {float(d_loss)} and {float(g_loss)} after "
            f"{options.updates} updates with seed {seed}; lower its learning rate"
        )
    return gan._replace(
        generator=average.generator, discriminator=gan.discriminator.eval().requires_grad_(False)
    )


def generate(gan: ConditionalGAN, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make as many images of each class.

    Args:
        gan: trained.
        per_class: images of each class.
        seed: of the noise.

    Returns:
        Images uint8 ``[classes * per_class, C, size, size]`` on the CPU, class after class, and
        their labels.
    """
    device = next(gan.generator.parameters()).device
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(gan.classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), *gan.latent, generator=rng)
    with torch.no_grad():
        parts = [
            as_bytes(gan.generator(z.to(device), y.to(device))).cpu()
            for z, y in zip(noise.split(BATCH), labels.split(BATCH), strict=True)
        ]
    return torch.cat(parts), labels
