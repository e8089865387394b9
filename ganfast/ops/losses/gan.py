"""The loss of a discriminator on real and generated images, or of a generator, in one op.

Every form of the loss is the mean of one function of a score x and a number t, the label::

    form            loss                                slope                     score
    probabilities   -t log(x) - (1 - t) log(1 - x)      (x - t) / (x (1 - x))     x
    logits          the same of sigmoid(x)              sigmoid(x) - t            sigmoid(x)
    squared         (x - t)^2                           2 (x - t)                 x
    hinge           max(0, 1 - t x)                     -t where t x < 1          x
    linear          -t x                                -t                        x

"probabilities" and "logits" are computed as in bce.py. A discriminator's loss is the mean over the
real scores with ``real_label`` plus the mean over the generated ones with ``fake_label``; hinge and
linear take labels of 1 and -1. ``functional.gan_discriminator_loss`` names the kinds of GAN loss
that consist of them, and their sources.

Scores are given in three ways: ``real`` and ``fake``; ``real`` alone with ``splits=2``, the real
scores in its first half and the generated ones in its second; ``real`` alone with ``splits=1``, for
a generator's loss with the label ``real_label``.

Results: the loss and the mean scores of the real and of the generated images, scalars in float32
(float64 for float64); a generator's loss comes with scores of no elements. Scores have no gradient.

Backward, with n scores in a mean: ``dx = dloss / n * slope``, read from ``dloss`` on its device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.ops import registry
from ganfast.ops.losses import arguments, reference
from ganfast.ops.tensors import accumulation_dtype, empty_like


def _fake(real: Tensor, fake: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, splits = rest
    dtype = accumulation_dtype(real)
    scores = () if fake is not None or splits == 2 else (0,)
    real_score, fake_score = (real.new_empty(scores, dtype=dtype) for _ in range(2))
    return real.new_empty((), dtype=dtype), real_score, fake_score


def _fake_backward(
    dloss: Tensor, real: Tensor, fake: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    *_, need_real, need_fake = rest
    dreal, dfake = (
        empty_like(x) if x is not None and needed else real.new_empty(0)
        for x, needed in ((real, need_real), (fake, need_fake))
    )
    return dreal, dfake


forward = registry.define(
    "gan_loss",
    reference.gan_loss,
    fake=_fake,
    check=arguments.check_gan_loss,
    results=("loss", "real_score", "fake_score"),
    triton="ganfast.ops.losses.triton:gan_loss",
)
# Gradients that are not needed come back with no elements.
backward = registry.define(
    "gan_loss_backward",
    reference.gan_loss_backward,
    fake=_fake_backward,
    check=arguments.check_gan_loss_backward,
    results=("dreal", "dfake"),
    triton="ganfast.ops.losses.triton:gan_loss_backward",
)


class _Forward(torch.autograd.Function):
    """Tie ``forward`` to ``backward``; ``csrc/autograd/gan_loss.cpp`` is its twin."""

    @staticmethod
    def forward(
        ctx: Any, real: Tensor, fake: Tensor | None, *constants: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(real, fake)
        ctx.constants = constants
        with torch._C._AutoDispatchBelowAutograd():
            loss, real_score, fake_score = forward(real, fake, *constants)
        ctx.mark_non_differentiable(real_score, fake_score)
        ctx.set_materialize_grads(False)
        return loss, real_score, fake_score

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Any, ...]:
        nothing = (None,) * 4
        if dloss is None:
            return (None, None, *nothing)
        need_real, need_fake = ctx.needs_input_grad[:2]
        dreal, dfake = backward(dloss, *ctx.saved_tensors, *ctx.constants, need_real, need_fake)
        return (dreal if need_real else None, dfake if need_fake else None, *nothing)


def register(*, python_autograd: bool) -> None:
    """Register the autograd forms: all of them, or only what the extension leaves to Python."""
    registry.differentiate("gan_loss_backward", by=reference.gan_loss_backward)
    if python_autograd:
        registry.register_autograd("gan_loss", _Forward.apply)
