"""What keeps a generator and a discriminator in balance: LeCam regularisation, VQGAN's weight."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["adaptive_weight", "lecam_regularization"]


def lecam_regularization(
    real: Tensor, fake: Tensor, real_average: Tensor | float, fake_average: Tensor | float
) -> Tensor:
    """Pull a discriminator's scores towards the averages of its past scores, for little data.

    The mean of ``max(0, real - fake_average)^2`` plus that of ``max(0, real_average - fake)^2``, as
    the authors' code has it; the paper's equation 4 is without the maximum. There is no host-device
    sync. :class:`ganfast.nn.LeCamRegularization` keeps the averages.

    Args:
        real: scores of real images, of any shape.
        fake: scores of generated images, of any shape.
        real_average: moving average of the mean scores of real images, a scalar.
        fake_average: the same of generated images.

    Returns:
        A scalar of the scores' dtype.

    Source: Tseng et al. 2021, https://arxiv.org/abs/2104.03310;
    https://github.com/google/lecam-gan

    Examples:
        >>> lecam_regularization(torch.tensor([2.0]), torch.tensor([-1.0]), 0.5, -0.5)
        tensor(8.5000)
    """
    above = (real - fake_average).relu().square().mean()
    below = (real_average - fake).relu().square().mean()
    return above + below


def adaptive_weight(
    reconstruction_loss: Tensor,
    generator_loss: Tensor,
    last_layer: Tensor,
    *,
    eps: float = 1e-4,
    maximum: float = 1e4,
) -> Tensor:
    """Weigh a generator's loss so that it moves the last layer as much as the reconstruction does.

    The norm of the gradient of ``reconstruction_loss``, divided by that of ``generator_loss`` plus
    ``eps``, at most ``maximum``. Both graphs are kept for the backward pass of the whole loss.
    There is no host-device sync.

    Args:
        reconstruction_loss: a scalar, with the perceptual loss in it.
        generator_loss: a scalar.
        last_layer: the weight of the generator's last layer.
        eps: added to the norm that divides.
        maximum: the largest weight.

    Returns:
        A scalar without gradient.

    Raises:
        RuntimeError: a loss does not depend on ``last_layer``.

    Source: Esser et al. 2021, https://arxiv.org/abs/2012.09841, equation 7;
    https://github.com/CompVis/taming-transformers

    Examples:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> y = layer(torch.ones(3, 2))
        >>> adaptive_weight(y.mean(), 2 * y.mean(), layer.weight, eps=0)
        tensor(0.5000)
    """
    (by_reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (by_generator,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    weight: Tensor = by_reconstruction.norm() / (by_generator.norm() + eps)
    return weight.clamp(max=maximum).detach()
