"""The losses of GANs: arguments are checked once, then the op is called."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import _reduction

from ganfast.ops.losses import bce, gan

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "check_gan_loss",
    "gan_discriminator_loss",
    "gan_generator_loss",
    "op_arguments",
]


class GANLossKind(NamedTuple):
    """One kind of GAN loss.

    Attributes:
        discriminator: the form of the op that a discriminator's loss has.
        generator: the same of a generator's.
        has_labels: whether its labels can be chosen.
    """

    discriminator: str
    generator: str
    has_labels: bool


GAN_LOSSES = {
    "bce": GANLossKind("logits", "logits", True),  # or "probabilities"
    "hinge": GANLossKind("hinge", "linear", False),
    "lsgan": GANLossKind("squared", "squared", True),
    "wasserstein": GANLossKind("linear", "linear", False),
}

_HALF = (torch.float16, torch.bfloat16)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor | float,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Measure the binary cross-entropy between probabilities and the target, in one kernel.

    :func:`torch.nn.functional.binary_cross_entropy`, with three differences: ``target`` may be a
    number, which stands for a tensor filled with it; half inputs are computed in float32; and under
    autocast the inputs are cast to float32 on every device; torch raises an error on a GPU.
    Logarithms are at least -100 and the gradient's denominator at least 1e-12, as in torch.

    Args:
        input: probabilities of any shape.
        target: of input's shape and dtype, or a number in [0, 1].
        weight: of each element, broadcast to input's shape; has no gradient.
        size_average: torch's deprecated argument.
        reduce: torch's deprecated argument.
        reduction: "none", "mean" or "sum".

    Returns:
        A tensor of input's dtype: a scalar, or for "none" of input's shape.

    Raises:
        ValueError: target's shape is not input's; a number outside [0, 1]; an unknown reduction.
        RuntimeError: on the CPU, an element of input or target outside [0, 1], NaN included (not
            checked on a GPU, where it would need a host-device sync); dtypes or devices differ;
            weight does not broadcast, is complex or requires a gradient.
        AttributeError: target is neither a tensor nor a number.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html

    Examples:
        >>> scores = torch.tensor([0.9, 0.6])
        >>> binary_cross_entropy(scores, 1.0)
        tensor(0.3081)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return _cross_entropy(input, target, weight, None, False, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor | float,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Measure the binary cross-entropy of sigmoid(input) against the target, in one kernel.

    :func:`torch.nn.functional.binary_cross_entropy_with_logits`, but ``target`` may be a number,
    which stands for a tensor filled with it, and half inputs are computed in float32. Under
    autocast inputs are cast to float32, as in torch.

    Args:
        input: logits of any shape.
        target: of input's shape, or a number in [0, 1].
        weight: of each element, broadcast to input's shape; has no gradient.
        size_average: torch's deprecated argument.
        reduce: torch's deprecated argument.
        reduction: "none", "mean" or "sum".
        pos_weight: weight of the positive part, broadcast to input's shape; has no gradient.

    Returns:
        A tensor of the target's dtype (input's for a number): a scalar, or for "none" of input's
        shape.

    Raises:
        ValueError: target's shape is not input's; a number outside [0, 1]; an unknown reduction.
        RuntimeError: a target of integers; devices differ; a weight does not broadcast, is complex
            or requires a gradient.
        AttributeError: target is neither a tensor nor a number.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html

    Examples:
        >>> binary_cross_entropy_with_logits(torch.tensor([2.0, -1.0]), 1.0)
        tensor(0.7201)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return _cross_entropy(input, target, weight, pos_weight, True, reduction)


def gan_discriminator_loss(
    real: Tensor | Sequence[Tensor],
    fake: Tensor | Sequence[Tensor] | None = None,
    *,
    kind: str = "bce",
    from_logits: bool = True,
    real_label: float = 1.0,
    fake_label: float = 0.0,
    splits: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Measure a discriminator's loss and its mean scores, in one kernel and without label tensors.

    The loss is the mean over the real images plus the mean over the generated ones of::

        kind            real                       generated
        "bce"           BCE(x, real_label)         BCE(x, fake_label)
        "softplus"      softplus(-x)               softplus(x)
        "hinge"         max(0, 1 - x)              max(0, 1 + x)
        "lsgan"         (x - real_label)^2         (x - fake_label)^2
        "wasserstein"   -x                         x

    "softplus", as StyleGAN's code has it, is "bce" of logits with the labels 1 and 0. Lists of
    scores, of a discriminator at several scales, give the means of their losses and scores.
    Smooth the labels with ``real_label=0.9``, for example. There is no host-device sync.

    Args:
        real: scores of real images, of any shape, or a list of them; with ``splits=2`` those of
            real images, then those of as many generated ones, along the first dimension.
        fake: scores of generated images, of real's dtype, or as long a list; None with
            ``splits=2``.
        kind: of loss.
        from_logits: for "bce", whether scores are logits rather than probabilities.
        real_label: target for real images, in [0, 1] for "bce".
        fake_label: target for generated images.
        splits: 1, or 2 if ``real`` holds both.

    Returns:
        The loss, the mean score of the real images and that of the generated ones: scalars in
        float32, or float64 for float64. A score is a probability for "bce", else x; it has no
        gradient.

    Raises:
        ValueError: an unknown kind; labels for a kind without labels, or outside [0, 1] for "bce";
            ``fake`` missing, or given with ``splits=2``; an odd batch with ``splits=2``; lists
            that are empty or of two lengths; probabilities for "softplus".
        RuntimeError: dtypes of real and fake differ; on the CPU, a probability outside [0, 1].

    Source: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661 (bce); Mao et al. 2016,
    https://arxiv.org/abs/1611.04076 (lsgan, here without the factor 1/2, as MSELoss); Arjovsky et
    al. 2017, https://arxiv.org/abs/1701.07875 (wasserstein); Miyato et al. 2018,
    https://arxiv.org/abs/1802.05957, equations 16 and 17 (hinge).

    Examples:
        >>> loss, real_score, fake_score = gan_discriminator_loss(torch.zeros(4), torch.zeros(4))
        >>> loss
        tensor(1.3863)
    """
    if not isinstance(real, Tensor):
        fakes = [None] * len(real) if fake is None else list(fake)
        if not 0 < len(real) == len(fakes):
            raise ValueError(
                "real and fake must have one or more scales, and as many, got "
                f"{len(real)} and {len(fakes)}"
            )
        loss_of = partial(
            gan_discriminator_loss,
            kind=kind,
            from_logits=from_logits,
            real_label=real_label,
            fake_label=fake_label,
            splits=splits,
        )
        results = [loss_of(*scores) for scores in zip(real, fakes, strict=True)]
        loss, of_real, of_fake = (torch.stack(each).mean(0) for each in zip(*results, strict=True))
        return loss, of_real, of_fake
    if not (fake is None or isinstance(fake, Tensor)):
        raise TypeError(f"fake must be a tensor, as real is, got {type(fake).__name__}")
    labelled = op_arguments("discriminator", kind, from_logits, real_label, fake_label)
    if splits == 2:
        if fake is not None:
            raise ValueError("with splits=2 real holds both kinds of scores: leave fake out")
        if real.dim() == 0 or real.shape[0] % 2:
            raise ValueError(f"splits=2 needs an even batch, got scores of shape {real.shape}")
    elif splits != 1:
        raise ValueError(f"splits must be 1 or 2, got {splits}")
    elif fake is None:
        raise ValueError("give the scores of generated images, or both in one tensor and splits=2")
    elif fake.dtype != real.dtype:
        raise RuntimeError(
            f"real and fake scores must have one dtype, got {real.dtype} and {fake.dtype}"
        )
    result: tuple[Tensor, Tensor, Tensor] = gan.forward(real, fake, *labelled, splits)
    return result


def gan_generator_loss(
    fake: Tensor | Sequence[Tensor],
    *,
    kind: str = "bce",
    from_logits: bool = True,
    real_label: float = 1.0,
) -> Tensor:
    """Measure a generator's loss from the scores of its images, in one kernel.

    The mean of ``BCE(x, real_label)`` for "bce" (the non-saturating loss), ``(x - real_label)^2``
    for "lsgan", ``-x`` for "hinge" and "wasserstein". Arguments, result, errors and sources are
    those of :func:`gan_discriminator_loss`.

    Examples:
        >>> gan_generator_loss(torch.tensor([1.0, 3.0]), kind="hinge")
        tensor(-2.)
    """
    if not isinstance(fake, Tensor):
        if not fake:
            raise ValueError("fake must have one or more scales, got none")
        loss_of = partial(
            gan_generator_loss, kind=kind, from_logits=from_logits, real_label=real_label
        )
        losses = [loss_of(scores) for scores in fake]
        return torch.stack(losses).mean(0)
    labelled = op_arguments("generator", kind, from_logits, real_label, 0.0)
    loss: Tensor = gan.forward(fake, None, *labelled, 1)[0]
    return loss


def _cross_entropy(
    x: Tensor,
    target: Tensor | float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    from_logits: bool,
    reduction: str,
) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if x.dtype in _HALF and torch.is_autocast_enabled(x.device.type):
        x = x.float()
    label, dtype = 0.0, None
    if isinstance(target, Tensor):
        if target.shape != x.shape:
            raise ValueError(f"target must have input's shape {x.shape}, got {target.shape}")
        if target.dtype != x.dtype:
            x, target, dtype = _agreed(x, target, from_logits)
    else:
        label = _check_label(target)
    if weight is not None:
        weight = _expanded("weight", weight, x)
    if pos_weight is not None:
        pos_weight = _expanded("pos_weight", pos_weight, x)
    y: Tensor = bce.forward(
        x,
        target if isinstance(target, Tensor) else None,
        label,
        weight,
        pos_weight,
        from_logits,
        reduction,
    )
    return y if dtype is None else y.to(dtype)


def _agreed(
    x: Tensor, target: Tensor, from_logits: bool
) -> tuple[Tensor, Tensor, torch.dtype | None]:
    """Return input and target in one dtype, and the dtype of the result if it is another."""
    if target.dtype in _HALF and torch.is_autocast_enabled(x.device.type):
        return x, target.to(x.dtype), None
    if not (from_logits and target.is_floating_point()):
        raise RuntimeError(
            f"expected a target of dtype {x.dtype}, as the input has, found {target.dtype}"
        )
    common = torch.promote_types(x.dtype, target.dtype)
    return x.to(common), target.to(common), target.dtype


def _expanded(name: str, weight: Tensor, x: Tensor) -> Tensor:
    if weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"the loss has no derivative for {name}: give {name}.detach()")
    return weight.expand(x.shape)


def _check_label(label: float) -> float:
    if not hasattr(label, "__float__"):  # as torch, which asks any target for its size
        raise AttributeError(f"target must be a tensor or a number, got {label!r}")
    label = float(label)
    if not 0.0 <= label <= 1.0:
        raise ValueError(f"a target must lie in [0, 1], got {label}")
    return label


def check_gan_loss(kind: str, real_label: float, fake_label: float) -> None:
    """Raise ValueError if ``kind`` is unknown or does not go with the labels."""
    op_arguments("discriminator", kind, True, real_label, fake_label)


def op_arguments(
    network: Literal["discriminator", "generator"],
    kind: str,
    from_logits: bool,
    real_label: float,
    fake_label: float,
) -> tuple[str, float, float]:
    """Return the op's form, real_label and fake_label for a network's loss."""
    if kind == "softplus":
        if not from_logits or (real_label, fake_label) != (1.0, 0.0):
            raise ValueError('"softplus" is "bce" of logits with the labels 1 and 0: use "bce"')
        kind = "bce"
    if kind == "bce":
        if not (0.0 <= real_label <= 1.0 and 0.0 <= fake_label <= 1.0):
            raise ValueError(f"labels must lie in [0, 1], got {real_label} and {fake_label}")
        return "logits" if from_logits else "probabilities", real_label, fake_label
    if kind not in GAN_LOSSES:
        kinds = ", ".join(map(repr, GAN_LOSSES))
        raise ValueError(f"kind must be one of {kinds}, got {kind!r}")
    form: str = getattr(GAN_LOSSES[kind], network)
    if GAN_LOSSES[kind].has_labels:
        return form, real_label, fake_label
    if real_label != 1.0 or fake_label != 0.0:
        raise ValueError(f"a {kind} loss has no labels, got {real_label} and {fake_label}")
    return form, 1.0, -1.0
