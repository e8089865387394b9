"""Models with torch's layers only, for machines without ganfast."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ganfast import nn as fused_nn
from ganfast.activations import ActivationConfig
from ganfast.fusion.placeholder import FusedActivation

__all__ = ["stock", "torch_pair"]

_TORCH_CLASSES: dict[type, Any] = {
    fused_nn.BatchNorm1d: nn.BatchNorm1d,
    fused_nn.BatchNorm2d: nn.BatchNorm2d,
    fused_nn.BatchNorm3d: nn.BatchNorm3d,
    fused_nn.SyncBatchNorm: nn.SyncBatchNorm,
    fused_nn.InstanceNorm1d: nn.InstanceNorm1d,
    fused_nn.InstanceNorm2d: nn.InstanceNorm2d,
    fused_nn.InstanceNorm3d: nn.InstanceNorm3d,
}


def stock(model: nn.Module) -> nn.Module:
    """Return a copy of a model with torch's own layer and activation for every fused layer.

    Parameters, buffers and training mode are copied; hooks of fused layers are not.

    Raises:
        ValueError: a layer has ``splits`` other than 1, which torch's layers lack.

    Examples:
        >>> from ganfast.models import dcgan, stock
        >>> stock(dcgan(image_size=16, channels=1, width=4).generator).main[1]
        Sequential(
          (0): BatchNorm2d(8, eps=1e-05, momentum=0.1, ...)
          (1): ReLU()
        )
    """
    copied = copy.deepcopy(model)
    if type(copied) in _TORCH_CLASSES:
        return _stock(copied)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _TORCH_CLASSES:
                setattr(parent, name, _stock(child))
            elif isinstance(child, FusedActivation):
                setattr(parent, name, nn.Identity())
    return copied


def _stock(layer: Any) -> nn.Module:
    if getattr(layer, "splits", 1) != 1:
        raise ValueError(f"{layer} normalises {layer.splits} chunks apart: set splits to 1 first")
    return _torch_norm(layer) if layer.activation is None else torch_pair(layer)


def torch_pair(layer: Any) -> nn.Sequential:
    """Build torch's layer and activation for one fused layer, with copies of its tensors."""
    norm, act = _torch_norm(layer), ActivationConfig.of(layer).layer()
    pair = (norm, act) if layer.order == "norm_act" else (act, norm)
    return nn.Sequential(*pair).train(layer.training)


def _torch_norm(layer: Any) -> nn.Module:
    norm: nn.Module = _TORCH_CLASSES[type(layer)](
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    tensors = [*layer.parameters(), *layer.buffers()]
    if tensors:
        norm.to(tensors[0].device, tensors[0].dtype if tensors[0].is_floating_point() else None)
    norm.load_state_dict(layer.state_dict())
    return norm.train(layer.training)
