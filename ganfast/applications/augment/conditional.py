"""A conditional DCGAN trained on few labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.applications.shifts import shifted
from ganfast.applications.updates import descend
from ganfast.models import ConditionalGAN, acgan
from ganfast.nn import GANLoss
from ganfast.training import DivergenceError
from ganfast.training.batches import as_bytes, as_float
from ganfast.training.ema import WeightAverage
from ganfast.training.options import POSITIVE, option
from ganfast.training.progress import Steps, silent

__all__ = ["GeneratorOptions", "generate", "train_conditional"]

BATCH = 256  # images made at once


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of the conditional DCGAN and its training."""

    updates: int = option(1000, "updates of the conditional DCGAN", POSITIVE, flag="--gan-updates")
    batch_size: int = 64  # real images an update, drawn with replacement
    width: int = option(16, "feature maps of the DCGAN beside the image", POSITIVE)
    latent: int = 64  # length of the noise
    learning_rate: float = 1e-3  # of Adam, whose betas are 0.5 and 0.999
    shift: float = 0.125  # of the discriminator's images at most, as a share of their side
    decay: float = 0.995  # of the average of weights that makes the images


def train_conditional(
    images: Tensor,
    labels: Tensor,
    classes: int,
    options: GeneratorOptions,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> ConditionalGAN:
    """Train on labelled images alone and return the networks, in evaluation mode.

    The discriminator sees real and generated images moved at random, against overfitting to few
    images. Its score is that of being real plus the logit of the image's class (projection), so
    there is one loss for both: with a cross-entropy of the classes beside that of the GAN, images
    of a class are less various.

    Args:
        images: uint8 ``[N, C, size, size]``.
        labels: ``[N]``, 0 to ``classes - 1``.
        classes: their number.
        options: of the networks and the training.
        seed: of every random number.
        device: to train on.
        progress: shows what is done.

    Raises:
        DivergenceError: the last loss is not finite.
        ValueError: the images' size is none that a DCGAN makes.

    Source:
        Miyato and Koyama 2018, equation 3, https://arxiv.org/abs/1802.05637;
        Zhao et al. 2020, equations 4 and 5, https://arxiv.org/abs/2006.10738

    Examples:
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
    generator, discriminator = (network.to(device) for network in gan[:2])
    adam_g, adam_d = (torch.optim.Adam(n.parameters(), betas=(0.5, 0.999)) for n in gan[:2])
    loss = GANLoss()
    average = WeightAverage(generator, options.decay)

    def scores(images: Tensor, labels: Tensor) -> Tensor:
        real, of_class = discriminator(shifted(images, options.shift, rng))
        total: Tensor = real + of_class.gather(1, labels[:, None]).squeeze(1)
        return total

    for _ in progress("conditional DCGAN", options.updates):
        chosen = torch.randint(len(images), (options.batch_size,), generator=rng)
        real, wanted = as_float(images[chosen]).to(device), labels[chosen].to(device)
        noise = torch.randn(options.batch_size, *gan.latent, generator=rng).to(device)
        fake = generator(noise, wanted)
        d_loss = loss.discriminator(scores(real, wanted), scores(fake.detach(), wanted))[0]
        descend(adam_d, d_loss, options.learning_rate)
        g_loss = loss.generator(scores(fake, wanted))
        descend(adam_g, g_loss, options.learning_rate)
        average.update(generator)
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
    """Generate the same number of images of each class.

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
