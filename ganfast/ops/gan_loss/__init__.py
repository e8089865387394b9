"""The loss of a discriminator on real and generated images, or of a generator, in one op.

Every kind of loss is the mean of one function of a score x and a number t, the label::

    kind            loss                                slope                     score
    probabilities   -t log(x) - (1 - t) log(1 - x)      (x - t) / (x (1 - x))     x
    logits          the same of sigmoid(x)              sigmoid(x) - t            sigmoid(x)
    squared         (x - t)^2                           2 (x - t)                 x
    hinge           max(0, 1 - t x)                     -t where t x < 1          x
    linear          -t x                                -t                        x

"probabilities" and "logits" are computed as ``binary_cross_entropy`` does. A discriminator's loss
is the mean over the real scores with ``real_label`` plus the mean over the generated ones with
``fake_label``; hinge and linear take labels of 1 and -1. The sources of the kinds are named in
``functional.gan_discriminator_loss``.

Scores come in three forms: ``real`` and ``fake``; ``real`` alone with ``splits=2``, where its first
half is the real scores and its second the generated ones; ``real`` alone with ``splits=1``, which
is a generator's loss with the label ``real_label``.

Results: the loss and the mean scores of the real and of the generated images, scalars in float32
(float64 for float64); a generator's loss comes with scores of no elements. Scores have no gradient.

Backward, with n scores in a mean: ``dx = dloss / n * slope``, read from ``dloss`` on its device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.ops import loss_arguments as checks
from ganfast.ops import registry
from ganfast.ops.gan_loss import eager


def _fake_forward(
    real: Tensor,
    fake: Tensor | None,
    kind: str,
    real_label: float,
    fake_label: float,
    splits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if real.dtype == torch.float64 else torch.float32
    scores = () if fake is not None or splits == 2 else (0,)
    real_score, fake_score = (real.new_empty(scores, dtype=dtype) for _ in range(2))
    return real.new_empty((), dtype=dtype), real_score, fake_score


def _fake_backward(
    dloss: Tensor,
    real: Tensor,
    fake: Tensor | None,
    kind: str,
    real_label: float,
    fake_label: float,
    splits: int,
    need_real: bool,
    need_fake: bool,
) -> tuple[Tensor, Tensor]:
    dreal, dfake = (
        torch.empty_like(x, memory_format=suggest_memory_format(x))
        if x is not None and needed
        else real.new_empty((0,))
        for x, needed in ((real, need_real), (fake, need_fake))
    )
    return dreal, dfake


forward = registry.define(
    "gan_loss(Tensor real, Tensor? fake, str kind, float real_label, float fake_label, int splits)"
    " -> (Tensor loss, Tensor real_score, Tensor fake_score)",
    eager=eager.forward,
    fake=_fake_forward,
    check=checks.check_gan_loss,
    triton="ganfast.ops.gan_loss.triton:forward",
)
# Gradients that nobody asked for come back with no elements.
backward = registry.define(
    "gan_loss_backward(Tensor dloss, Tensor real, Tensor? fake, str kind, float real_label,"
    " float fake_label, int splits, bool need_real, bool need_fake)"
    " -> (Tensor dreal, Tensor dfake)",
    eager=eager.backward,
    fake=_fake_backward,
    check=checks.check_gan_loss_backward,
    triton="ganfast.ops.gan_loss.triton:backward",
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
    registry.differentiate("gan_loss_backward", by=eager.backward)
    if python_autograd:
        registry.register_autograd("gan_loss", _Forward.apply)
