"""Instance normalisation and its activation: the op of batch normalisation, image by image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ganfast.activations import check_activation, check_order
from ganfast.functional.batch_norm_act import batch_norm_act
from ganfast.ops import batch_norm_act as _op

__all__ = ["instance_norm_act"]


def instance_norm_act(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    order: str = "norm_act",
) -> Tensor:
    """Normalise each channel of each image of ``x`` and apply an activation, in one kernel.

    Computes ``act(instance_norm(x))``, or ``instance_norm(act(x))`` with ``order="act_norm"``, with
    the values, gradients and running statistics of :func:`torch.nn.functional.instance_norm` and
    the activation. Differentiable to any order. A channels-last ``x`` is neither copied nor given
    back in another memory format, as torch does both. An empty batch gives an empty result.

    Args:
        x: input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        running_mean: shape (C,), or None; with ``use_input_stats`` it moves in place towards the
            average of the images' means.
        running_var: likewise, towards the average of their unbiased variances.
        weight: shape (C,), or None for ones.
        bias: shape (C,), or None for zeros.
        use_input_stats: use each image's own statistics rather than the running ones.
        momentum: weight of the new batch in the running statistics.
        eps: added to the variance.
        activation: None, "relu" or "leaky_relu".
        negative_slope: slope of "leaky_relu" below zero.
        order: "norm_act" or "act_norm".

    Returns:
        A tensor of x's shape, dtype and memory format.

    Raises:
        ValueError: x has one value per image and channel where its own statistics are used; one
            running statistic without the other; an unknown ``activation`` or ``order``; an eps
            that is not positive.
        RuntimeError: sizes or dtypes of the vectors do not fit x; no running statistics although
            ``use_input_stats`` is False.

    Source: Ulyanov, Vedaldi and Lempitsky 2016, https://arxiv.org/abs/1607.08022, section 2.

    Examples:
        >>> x = torch.randn(2, 3, 8, 8)
        >>> y = instance_norm_act(x, activation="leaky_relu", negative_slope=0.2)
        >>> y.shape
        torch.Size([2, 3, 8, 8])
    """
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise RuntimeError(
                "Expected running_mean and running_var to be defined when use_input_stats is false"
            )
        return batch_norm_act(
            x, running_mean, running_var, weight, bias, eps=eps,
            activation=activation, negative_slope=negative_slope, order=order,
        )  # fmt: skip
    check_activation(activation)
    check_order(order)
    _check_input(x, running_mean, running_var, eps)
    act = (activation, negative_slope, order)
    if x.is_contiguous() or suggest_memory_format(x) == torch.contiguous_format:
        y, mean, var = _as_channels(x, weight, bias, running_mean is not None, eps, act)
    else:
        y, mean, var = _as_splits(x, weight, bias, running_mean is not None, eps, act)
    if mean is not None and x.numel():  # nothing is learned from an empty batch
        _follow(running_mean, mean, momentum)
        _follow(running_var, var, momentum)
    return y


_Results = tuple[Tensor, Tensor | None, Tensor | None]
"""y, and the batch's average mean and unbiased variance for the running statistics."""


def _as_channels(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    average: bool,
    eps: float,
    act: tuple[str | None, float, str],
) -> _Results:
    """Normalise (N, C, ...) as one image of N * C channels: a view of a contiguous tensor.

    One chunk for each image would do as well, without copies of weight and bias, and is up to a
    fifth faster on CPUs; but the kernels for GPUs that keep a channel on chip work through chunks
    one after another.
    """
    images, channels = x.shape[:2]
    view = x.reshape(1, images * channels, *x.shape[2:])
    if images != 1:
        weight, bias = (None if v is None else _wide(v, x).repeat(images) for v in (weight, bias))
    mean = var = None
    if average:
        # The momentum of 1 stores each image's own statistics.
        mean, var = (_zeros(x, images * channels) for _ in range(2))
    y = _op.train(view, weight, bias, mean, var, None, 1.0, eps, *act, 1)[0].view(x.shape)
    if mean is None or var is None:
        return y, None, None
    return y, *(v.view(images, channels).mean(0) for v in (mean, var))


def _as_splits(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    average: bool,
    eps: float,
    act: tuple[str | None, float, str],
) -> _Results:
    """Normalise a channels-last tensor as one chunk of the batch for each image."""
    mean = var = count = None
    momentum: float | None = 0.0
    if average:
        # The cumulative average over chunks, which starts anew with each call.
        mean, var = (_zeros(x, x.shape[1]) for _ in range(2))
        count, momentum = torch.zeros((), dtype=torch.int64, device=x.device), None
    splits = max(1, x.shape[0])
    y = _op.train(x, weight, bias, mean, var, count, momentum, eps, *act, splits)[0]
    return y, mean, var


def _follow(running: Tensor | None, batch: Tensor | None, momentum: float) -> None:
    if running is not None and batch is not None:
        running.copy_((1 - momentum) * running.to(batch.dtype) + momentum * batch)


def _wide(vector: Tensor, x: Tensor) -> Tensor:
    """Return a half vector in float32, so that the gradients of its copies add up there."""
    return vector.float() if vector.dtype == x.dtype != torch.float64 else vector


def _zeros(x: Tensor, size: int) -> Tensor:
    return x.new_zeros(size, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _check_input(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, eps: float
) -> None:
    positions = 1
    for size in x.shape[2:]:
        positions *= size
    if positions == 1:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {x.shape}"
        )
    if eps <= 0.0:
        raise ValueError(f"eps must be positive where x's own statistics are used, got {eps}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None and running.numel() != x.shape[1]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements not {running.numel()}")
