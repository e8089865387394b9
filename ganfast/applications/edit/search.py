"""The search for the latent vectors whose images lose least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ganfast.models import GAN

__all__ = ["SearchOptions", "prior_loss", "search"]

Objective = Callable[[Tensor, Tensor], Tensor]
"""Takes images ``[N, C, H, W]`` and which given image each is for ``[N]``; gives losses ``[N]``."""


@dataclass(frozen=True)
class SearchOptions:
    """How the search goes.

    Attributes:
        steps: of Adam.
        restarts: searches for each image, from vectors of their own; the best one counts.
        learning_rate: at the start; it falls to 0 along half a cosine.
        prior: weight of the discriminator's opinion.
        seed: of the first vectors.
        batch: vectors searched for at once.
    """

    steps: int = 300
    restarts: int = 4
    learning_rate: float = 0.1
    prior: float = 0.003
    seed: int = 0
    batch: int = 64


def search(
    gan: GAN, objective: Objective, count: int, options: SearchOptions
) -> tuple[Tensor, Tensor]:
    """Find a latent vector for each of ``count`` given images.

    Vectors are drawn from N(0, 1) and held inside the ball of radius ``sqrt(dimensions)``, near
    whose surface such vectors lie: the networks saw none from far outside. Each image's result is
    what it would be alone.

    Args:
        gan: in evaluation mode; its device is searched on.
        objective: what to lose least of.
        count: number of images.
        options: of the search.

    Returns:
        Vectors ``[count, *latent]`` and their losses ``[count]``.

    Example:
        >>> import torch
        >>> from ganfast.applications.edit.search import SearchOptions, search
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=16, channels=1, width=4)
        >>> _ = [network.eval().requires_grad_(False) for network in gan[:2]]
        >>> brightness = lambda images, which: images.mean((1, 2, 3))
        >>> search(gan, brightness, 2, SearchOptions(steps=3))[0].shape
        torch.Size([2, 100, 1, 1])
    """
    device = next(gan.generator.parameters()).device
    rng = torch.Generator().manual_seed(options.seed)
    # Restart after restart for each image, so that more images leave the first ones' starts alone.
    starts = torch.randn(count, options.restarts, *gan.latent, generator=rng).flatten(0, 1)
    which = torch.arange(count).repeat_interleave(options.restarts)
    parts = [
        _descend(gan, objective, start.to(device), of.to(device), options)
        for start, of in zip(starts.split(options.batch), which.split(options.batch), strict=True)
    ]
    latent, loss = (torch.cat(column) for column in zip(*parts, strict=True))
    best = loss.reshape(count, options.restarts).argmin(1)
    chosen = torch.arange(count, device=device) * options.restarts + best
    return latent[chosen], loss[chosen]


def prior_loss(scores: Tensor) -> Tensor:
    """Return ``log(1 - D)`` of scores ``[N]``, logits of D.

    Source:
        Yeh et al. 2017, equation 4, https://arxiv.org/abs/1607.07539
    """
    return -softplus(scores)


def _descend(
    gan: GAN, objective: Objective, start: Tensor, which: Tensor, options: SearchOptions
) -> tuple[Tensor, Tensor]:
    latent = start.clone().requires_grad_()
    adam = torch.optim.Adam([latent], options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, options.steps)
    for _ in range(options.steps):
        adam.zero_grad()
        _loss(gan, objective, latent, which, options).sum().backward()
        adam.step()
        schedule.step()
        with torch.no_grad():
            latent.copy_(_inside_ball(latent))
    with torch.no_grad():
        loss = _loss(gan, objective, latent, which, options)
    return latent.detach(), loss.where(loss.isfinite(), torch.inf)


def _loss(
    gan: GAN, objective: Objective, latent: Tensor, which: Tensor, options: SearchOptions
) -> Tensor:
    images = gan.generator(latent)
    loss = objective(images, which)
    return loss + options.prior * prior_loss(gan.discriminator(images)) if options.prior else loss


def _inside_ball(latent: Tensor) -> Tensor:
    flat = latent.flatten(1)
    radius = flat.shape[1] ** 0.5
    longest = flat.norm(dim=1, keepdim=True).clamp(min=radius)
    inside: Tensor = flat * (radius / longest)
    return inside.reshape(latent.shape)
