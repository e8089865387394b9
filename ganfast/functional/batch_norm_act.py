"""Batch normalisation and its activation: arguments are checked once, then the op is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.activations import ACTIVATIONS, check_activation, check_order
from ganfast.ops import batch_norm_act as _op

__all__ = ["batch_norm_act"]


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    order: str = "norm_act",
    splits: int = 1,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Normalise each channel of ``x`` and apply an activation, in one kernel.

    Computes ``act(batch_norm(x))``, or ``batch_norm(act(x))`` with ``order="act_norm"``, with the
    values, gradients and running statistics of :func:`torch.nn.functional.batch_norm` and the
    activation. Differentiable to any order.

    Args:
        x: input of shape (N, C) or (N, C, ...).
        running_mean: shape (C,), updated in place in training; may be None there.
        running_var: as running_mean.
        weight: shape (C,), or None for ones.
        bias: shape (C,), or None for zeros.
        training: use the batch's statistics rather than the running ones.
        momentum: weight of the new batch in the running statistics; None for their cumulative
            average, which needs ``num_batches_tracked``.
        eps: added to the variance.
        activation: None, "relu" or "leaky_relu".
        negative_slope: slope of "leaky_relu" below zero.
        order: "norm_act" or "act_norm".
        splits: number of equal chunks of the batch that are normalised one by one in training,
            exactly as in that many separate calls.
        num_batches_tracked: int64 scalar tensor, raised by ``splits`` in training.

    Returns:
        A tensor of x's shape, dtype and memory format.

    Raises:
        ValueError: a chunk has one value per channel in training; ``splits`` does not divide N;
            an unknown ``activation`` or ``order``; an eps that is not positive; a momentum of None
            without a counter.
        TypeError: ``training`` is no bool, ``momentum`` no number, ``splits`` no integer.
        RuntimeError: sizes, dtypes or devices of the vectors do not fit x; no running statistics
            in evaluation; running statistics that require grad, or, in training, share memory with
            x, weight, bias or each other.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1.

    Examples:
        >>> x = torch.randn(8, 3, 4, 4)
        >>> y = batch_norm_act(x, None, None, training=True, activation="relu")
        >>> y.shape
        torch.Size([8, 3, 4, 4])
    """
    if training.__class__ is not bool or momentum.__class__ is not float or splits != 1:
        _check_types(training, momentum, splits)
    if activation not in ACTIVATIONS:
        check_activation(activation)
    if order != "norm_act":
        check_order(order)
    if x.dim() < 2:
        raise ValueError(f"x must have shape (N, C, ...), got {tuple(x.shape)}")
    if eps <= 0.0 and (training or eps < 0.0):
        raise ValueError(f"eps must be positive in training and not negative, got {eps}")
    if training:
        _check_chunks(x, splits)
        if momentum is None and num_batches_tracked is None and running_mean is not None:
            raise ValueError("momentum=None averages over all batches: give num_batches_tracked")
        y: Tensor = _op.train(
            x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps,
            activation, negative_slope, order, splits,
        )[0]  # fmt: skip
        return y
    if running_mean is None or running_var is None:
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"{missing} must be defined in evaluation mode")
    y = _op.evaluate(
        x, weight, bias, running_mean, running_var, eps, activation, negative_slope, order
    )[0]
    return y


def _check_types(training: Any, momentum: Any, splits: Any) -> None:
    if not isinstance(training, bool):
        raise TypeError(f"training must be a bool, got {training!r}")
    # The usual types first: Dynamo of torch 2.11 cannot ask a symbolic number for an attribute.
    is_number = isinstance(momentum, (float, torch.SymFloat)) or hasattr(momentum, "__float__")
    if momentum is not None and not is_number:
        raise TypeError(f"momentum must be a float or None, got {momentum!r}")
    if not isinstance(splits, (int, torch.SymInt)):
        raise TypeError(f"splits must be an integer, got {splits!r}")


def _check_chunks(x: Tensor, splits: int) -> None:
    if splits != 1 and (splits < 1 or x.shape[0] % splits):
        raise ValueError(
            f"splits must divide the batch into equal chunks: got splits={splits} "
            f"for a batch of {x.shape[0]}"
        )
    if x.numel() == splits * x.shape[1] and x.shape[1]:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
            + (f" in {splits} splits" if splits != 1 else "")
        )
