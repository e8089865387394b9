"""Penalties on the gradient of a discriminator's scores with respect to its images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ganfast.training.batch import Scores, as_list
from ganfast.training.processes import Processes

__all__ = ["gradient_penalty", "r1_penalty"]


def gradient_penalty(
    discriminator: Callable[[Tensor], Scores],
    real: Tensor,
    fake: Tensor,
    processes: Processes | None = None,
) -> Tensor:
    """Return the mean of ``(|gradient| - 1)^2`` at random points between real and fake images.

    Args:
        discriminator: maps images to scores, batch first, or to a list of them.
        real: images ``[N, ...]``.
        fake: as many generated ones.
        processes: those that have the other parts of the batch; None for none.

    Source:
        Gulrajani et al. 2017, algorithm 1, https://arxiv.org/abs/1704.00028
    """
    processes = processes or Processes()
    count, ones = len(real) * processes.count, (1,) * (real.dim() - 1)
    share = processes.part(torch.rand(count, *ones, device=real.device, dtype=real.dtype))
    between = torch.lerp(fake.detach().to(real.dtype), real.detach(), share).requires_grad_()
    norms: Tensor = _gradient(discriminator(between), between).flatten(1).norm(dim=1)
    penalty: Tensor = (norms - 1).square().mean()
    return penalty


def r1_penalty(scores: Scores, real: Tensor) -> Tensor:
    """Return the mean of ``|gradient|^2`` at real images.

    Args:
        scores: of the images, batch first, or a list of them, from a graph that holds ``real``.
        real: images ``[N, ...]`` that require a gradient.

    Source:
        Mescheder et al. 2018, section 4.1, https://arxiv.org/abs/1801.04406
    """
    return _gradient(scores, real).flatten(1).square().sum(1).mean()


def _gradient(scores: Scores, images: Tensor) -> Tensor:
    total = torch.stack([each.sum() for each in as_list(scores)]).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient.float() if gradient.dtype != torch.float64 else gradient
