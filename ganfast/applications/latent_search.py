"""The search for latent vectors whose images have the least loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ganfast.models import GAN
from ganfast.training.options import POSITIVE, SEED, option
from ganfast.training.progress import progress_bars, silent

__all__ = ["SearchOptions", "candidates", "descend", "prior_loss", "search"]

Objective = Callable[[Tensor, Tensor], Tensor]
"""Takes images ``[N, C, H, W]`` and which given image each is for ``[N]``; gives losses ``[N]``."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of :func:`search`."""

    steps: int = option(300, "steps of each search", POSITIVE)
    restarts: int = option(4, "searches for each image, of which the best counts", POSITIVE)
    learning_rate: float = 0.1  # of Adam at the start; it falls to 0 along half a cosine
    prior: float = 0.003  # weight of log(1 - D)
    seed: int = option(0, "seed of the search and of the random mask", SEED)
    batch: int = 64  # vectors searched for at once
    shown: bool = False  # progress, on standard error


def search(
    gan: GAN, objective: Objective, count: int, options: SearchOptions
) -> tuple[Tensor, Tensor]:
    """Find a latent vector for each of ``count`` given images.

    Vectors are drawn from N(0, 1) and held inside the ball of radius ``sqrt(dimensions)``, near
    whose surface such vectors lie: the networks saw none from far outside. Each image's result is
    what it would be alone.

    Args:
        gan: in evaluation mode; its device is searched on.
        objective: the loss.
        count: number of images.
        options: of the search.

    Returns:
        Vectors ``[count, *latent]`` and their losses ``[count]``.

    Examples:
        >>> import torch
        >>> from ganfast.applications.latent_search import SearchOptions, search
        >>> from ganfast.models import dcgan
        >>> gan = dcgan(image_size=16, channels=1, width=4)
        >>> _ = [network.eval().requires_grad_(False) for network in gan[:2]]
        >>> brightness = lambda images, which: images.mean((1, 2, 3))
        >>> search(gan, brightness, 2, SearchOptions(steps=3))[0].shape
        torch.Size([2, 100, 1, 1])
    """
    latent, loss = candidates(gan, objective, count, options)
    best = loss.argmin(1)
    each = torch.arange(count, device=best.device)
    return latent[each, best], loss[each, best]


def candidates(
    gan: GAN, objective: Objective, count: int, options: SearchOptions
) -> tuple[Tensor, Tensor]:
    """Return what each of the searches of :func:`search` found, not the best alone.

    Returns:
        Vectors ``[count, restarts, *latent]`` and their losses ``[count, restarts]``; a loss that
        is not finite is infinite.
    """
    device = next(gan.generator.parameters()).device
    rng = torch.Generator().manual_seed(options.seed)
    # Restart after restart for each image: more images do not change the starts of the first ones.
    starts = torch.randn(count, options.restarts, *gan.latent, generator=rng).flatten(0, 1)
    which = torch.arange(count).repeat_interleave(options.restarts)

    def losses(latent: Tensor, which: Tensor) -> Tensor:
        images = gan.generator(latent)
        loss = objective(images, which)
        if options.prior:
            loss = loss + options.prior * prior_loss(gan.discriminator(images))
        return loss

    latents, found = [], []
    parts = list(zip(starts.split(options.batch), which.split(options.batch), strict=True))
    with progress_bars() if options.shown else nullcontext(silent) as progress:
        taken = progress("search", len(parts) * options.steps)
        for start, part in parts:
            indices = part.to(device)
            latent, loss = descend(
                lambda z, indices=indices: losses(z, indices),  # type: ignore[misc]
                start.to(device), options.steps, options.learning_rate, annealed=True, in_ball=True,
                taken=taken,
            )  # fmt: skip
            latents.append(latent)
            found.append(loss.where(loss.isfinite(), torch.inf))
    latent, loss = torch.cat(latents), torch.cat(found)
    shape = (count, options.restarts)
    return latent.unflatten(0, shape), loss.unflatten(0, shape)


def descend(
    losses: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    learning_rate: float,
    *,
    annealed: bool = False,
    in_ball: bool = False,
    taken: Iterator[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Follow the gradients of losses from latent vectors with Adam.

    Args:
        losses: maps latent vectors ``[N, *latent]`` to losses ``[N]``.
        start: the first vectors.
        steps: of Adam.
        learning_rate: of Adam.
        annealed: whether the learning rate falls to 0 along half a cosine.
        in_ball: whether vectors are held inside the ball of radius ``sqrt(dimensions)``.
        taken: shows what is done; it has as many steps, or those of later searches too.

    Returns:
        The last vectors and their losses.
    """
    latent = start.clone().requires_grad_()
    adam = torch.optim.Adam([latent], learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps) if annealed else None
    for _ in range(steps) if taken is None else islice(taken, steps):
        (latent.grad,) = torch.autograd.grad(losses(latent).sum(), latent)
        adam.step()
        if schedule is not None:
            schedule.step()
        if in_ball:
            with torch.no_grad():
                latent.copy_(_inside_ball(latent))
    with torch.no_grad():
        return latent.detach(), losses(latent)


def prior_loss(scores: Tensor) -> Tensor:
    """Return ``log(1 - D)`` of scores ``[N]``, logits of D.

    Source:
        Yeh et al. 2017, equation 4, https://arxiv.org/abs/1607.07539
    """
    return -softplus(scores)


def _inside_ball(latent: Tensor) -> Tensor:
    flat = latent.flatten(1)
    radius = flat.shape[1] ** 0.5
    longest = flat.norm(dim=1, keepdim=True).clamp(min=radius)
    inside: Tensor = flat * (radius / longest)
    return inside.reshape(latent.shape)
