"""Convert a model's BatchNorm layers to the statistics of all processes."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ganfast import nn as fused_nn
from ganfast.nn.batch_norm import SETTINGS

__all__ = ["convert_sync_batchnorm"]

_LAYERS = tuple(
    getattr(module, name)
    for module in (nn, fused_nn)
    for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
)


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """Convert every BatchNorm of a model to :class:`ganfast.nn.SyncBatchNorm`, in place.

    Unlike :func:`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, which silently drops the
    activation of a ``ganfast.nn`` layer, it keeps the activation; layers, parameters, buffers and
    hooks stay the same objects. Fuse first, then convert: :func:`ganfast.unfuse` leaves converted
    layers alone.

    Args:
        module: the model, or one layer.
        process_group: the processes that share statistics; None for all.

    Returns:
        ``module``.

    Warns:
        UserWarning: torch's converter seems to have been there before, on a fused model.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 4), ganfast.nn.BatchNorm2d(8, activation="relu"))
        >>> convert_sync_batchnorm(model)[1]
        SyncBatchNorm(8, eps=1e-05, momentum=0.1, ..., activation='relu')
    """
    for name, parent in module.named_modules():
        for (slot, child), follower in zip(
            parent._modules.items(), [*parent._modules.values()][1:], strict=False
        ):
            if type(child) is nn.SyncBatchNorm and type(follower) is nn.Identity:
                warnings.warn(
                    f"{name}{'.' if name else ''}{slot} is torch's SyncBatchNorm before an "
                    "Identity: if it was a fused layer, torch's converter dropped its activation; "
                    "convert the fused model with ganfast.convert_sync_batchnorm instead",
                    stacklevel=2,
                )
    for layer in module.modules():
        if type(layer) in _LAYERS:
            _convert(layer, process_group)
    return module


def _convert(layer: Any, process_group: Any) -> None:
    layer.__class__ = fused_nn.SyncBatchNorm
    vars(layer).update({**SETTINGS, **vars(layer), "process_group": process_group})
    vars(layer).pop("_before_fusion", None)  # unfuse would take the synchronisation away
