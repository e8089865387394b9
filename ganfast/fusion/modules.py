"""Fuse the layers of an existing model, and undo it.

A fused layer stays the same object: only its class and four settings change. Optimizers, hooks and
names that refer to it, to its parameters or to its buffers therefore keep working.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ganfast import nn as fused_nn
from ganfast.activations import ACTIVATIONS, ActivationConfig, why_not_slope
from ganfast.fusion.report import FusedLayer, FusionReport
from ganfast.nn.batch_norm import SETTINGS, Activated

__all__ = ["fuse", "unfuse"]

_NORMS: dict[type, type] = {
    layer: getattr(fused_nn, layer.__name__)
    for torch_layer in (
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
        nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    )
    for layer in (torch_layer, getattr(fused_nn, torch_layer.__name__))
}  # fmt: skip
_LOSSES: dict[type, type] = {
    nn.BCELoss: fused_nn.BCELoss,
    nn.BCEWithLogitsLoss: fused_nn.BCEWithLogitsLoss,
}
_ACTIVATIONS = {row.layer: name for name, row in ACTIVATIONS.items() if name}
# Layers that return a new tensor: no other code sees whether an activation overwrites it.
_FRESH_OUTPUT = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, _BatchNorm, _InstanceNorm)
_ORIGIN = "_before_fusion"


class _Origin(NamedTuple):
    """What `unfuse` needs; a tuple, so that nn.Module does not take the activation for a child."""

    layer_class: type
    settings: dict[str, Any]
    activation: nn.Module | None
    placeholder: nn.Module | None


class _Place(NamedTuple):
    parent: nn.Module
    slot: str


def fuse(model: nn.Module, *, act_norm: bool = False) -> FusionReport:
    """Fuse each BatchNorm with the ReLU or LeakyReLU behind it in an nn.Sequential, in place.

    InstanceNorm is fused likewise. The BatchNorm becomes a :class:`ganfast.nn.BatchNorm2d` (1d,
    3d), an InstanceNorm a :class:`ganfast.nn.InstanceNorm2d`, with an activation, and an
    ``nn.Identity`` takes the activation's slot. Layers, parameters and buffers stay the same
    objects; state_dict, indices, hooks, mode, dtype and device do not change. nn.BCELoss and
    nn.BCEWithLogitsLoss become ganfast's. Whatever might compute something else stays as it is, and
    the report says why.

    A Sequential's children may also be called one by one (``model[0](x)``). Where such code uses
    the output of the BatchNorm itself, not only what the activation makes of it, fusion changes
    that value, and no inspection of the model can tell: call ``unfuse``, or fuse other parts of the
    model only.

    Args:
        model: the whole model, so that layers used in two places are seen.
        act_norm: also fuse an activation with the BatchNorm behind it, if that BatchNorm is not
            itself followed by an activation.

    Returns:
        The pairs and losses that were fused, and what was left with the reason. Its text is a
        table.

    Raises:
        TypeError: ``model`` is not an nn.Module.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
        >>> fuse(model)
        fused  1  8 channels, leaky_relu(0.2)
        1 pair and 0 losses fused, 0 left as is
        >>> model[1]
        BatchNorm2d(8, eps=1e-05, momentum=0.1, ..., activation='leaky_relu', negative_slope=0.2)
    """
    _check_module(model)
    places = _places(model)
    report = FusionReport()
    for name, module in list(model.named_modules()):
        if type(module) in _LOSSES:
            if reason := _loss_stays(module):
                report.skipped.append((name, reason))
            else:
                _convert(module, _LOSSES[type(module)], None, None)
                report.losses.append((name, type(module).__name__))
        elif isinstance(module, (_BatchNorm, _InstanceNorm)) and not _has_activation(module):
            try:
                pair = _find_pair(module, places.get(module, []), act_norm)
            except _LeftAloneError as reason:
                report.skipped.append((name, str(reason)))
            else:
                report.fused.append(_fuse_pair(name, module, *pair))
    return report


def unfuse(model: nn.Module) -> None:
    """Undo :func:`fuse`, in place: the layer's class and the very activation come back.

    Parameters, buffers and their values stay. Works on copies and unpickled models as well. Layers
    that were made as ``ganfast.nn`` layers with an activation are not touched.

    Raises:
        TypeError: ``model`` is not an nn.Module.
        RuntimeError: the slot of an activation is no longer in the model; nothing is changed then.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        >>> report = fuse(model)
        >>> unfuse(model)
        >>> model[1]
        ReLU()
    """
    _check_module(model)
    places = _places(model)
    fused = [(n, m, vars(m)[_ORIGIN]) for n, m in model.named_modules() if _ORIGIN in vars(m)]
    for name, _, origin in fused:
        if origin.placeholder is not None and origin.placeholder not in places:
            raise RuntimeError(
                f"{name}: the Identity in its activation's slot is not in this model: unfuse the "
                "model that was fused"
            )
    for _, module, origin in fused:
        module.__class__ = origin.layer_class
        for setting in SETTINGS:
            vars(module).pop(setting, None)
        vars(module).update(origin.settings)
        del vars(module)[_ORIGIN]
        if origin.activation is not None:
            origin.activation.train(origin.placeholder.training)
            for parent, slot in places[origin.placeholder]:
                parent._modules[slot] = origin.activation


class _LeftAloneError(Exception):
    """Raised for a normalisation layer that is left as it is; the message is the reason."""


def _find_pair(norm: Any, places: list[_Place], act_norm: bool) -> tuple[_Place, Any, str]:
    """Return the activation's place, the activation and the order, or raise _LeftAloneError."""
    _check_class(norm)
    if len(places) != 1:
        reason = f"is used in {len(places)} places" if places else "stands alone"
        raise _LeftAloneError(reason)
    sequential = places[0].parent
    if not isinstance(sequential, nn.Sequential):
        raise _LeftAloneError(
            'outside nn.Sequential; torch.compile(model, backend="ganfast") looks there'
        )
    if not _runs_as_sequential(sequential):
        raise _LeftAloneError(f"{type(sequential).__name__} has a forward of its own")
    nothing = ("", None)
    slots = [nothing, nothing, *sequential._modules.items(), nothing]
    index = [slot for slot, _ in slots].index(places[0].slot, 2)
    (_, before), in_front, _, behind = slots[index - 2 : index + 2]
    if type(behind[1]) in _ACTIVATIONS:
        (slot, activation), order = behind, "norm_act"
    elif act_norm and type(in_front[1]) in _ACTIVATIONS:
        (slot, activation), order = in_front, "act_norm"
        _check_in_place(activation, before)
    elif behind is nothing:
        raise _LeftAloneError("last in its Sequential")
    else:
        raise _LeftAloneError(f"followed by {type(behind[1]).__name__}")
    _check_hooks(norm, activation, order)
    if reason := why_not_slope(_slope(activation)):
        raise _LeftAloneError(reason)
    return _Place(sequential, slot), activation, order


def _check_class(norm: Any) -> None:
    """Raise _LeftAloneError if the layer may compute something else than torch's."""
    name = type(norm).__name__
    if isinstance(norm, (nn.SyncBatchNorm, fused_nn.SyncBatchNorm)):
        raise _LeftAloneError("SyncBatchNorm: fuse first, then call ganfast.convert_sync_batchnorm")
    if isinstance(norm, LazyModuleMixin):
        raise _LeftAloneError(f"{name} has no channels yet: fuse after a first batch")
    if type(norm).__module__.startswith("torch.ao.") or getattr(norm, "qconfig", None) is not None:
        raise _LeftAloneError(f"{name} is quantised or prepared for it")
    if parametrize.is_parametrized(norm):
        raise _LeftAloneError("is parametrised")
    if type(norm) not in _NORMS:
        stock_forward = type(norm).forward in (_BatchNorm.forward, _InstanceNorm.forward)
        own = not stock_forward or "forward" in vars(norm)
        raise _LeftAloneError(f"{name} overrides forward" if own else f"{name} is a subclass")
    if "forward" in vars(norm):
        raise _LeftAloneError("its forward was replaced")
    if not {"weight", "bias"} <= norm._parameters.keys():
        raise _LeftAloneError("its weight or bias is computed by a hook")
    if not {"running_mean", "running_var", "num_batches_tracked"} <= norm._buffers.keys():
        raise _LeftAloneError("its running statistics are no buffers")


def _check_hooks(norm: Any, activation: Any, order: str) -> None:
    """Raise _LeftAloneError if a hook would see other tensors than before."""
    # Behind the fused layer lies the activation's output, so gradients differ there as well.
    if norm._forward_hooks:
        raise _LeftAloneError("has a forward hook")
    if norm._backward_hooks or norm._backward_pre_hooks:
        raise _LeftAloneError("has a backward hook")
    if order == "act_norm" and norm._forward_pre_hooks:
        raise _LeftAloneError("has a forward pre-hook")
    name = type(activation).__name__
    if _has_hooks(activation):
        raise _LeftAloneError(f"its {name} has a hook")
    if "forward" in vars(activation):
        raise _LeftAloneError(f"the forward of its {name} was replaced")


def _slope(activation: Any) -> Any:
    row = ACTIVATIONS[_ACTIVATIONS[type(activation)]]
    return activation.negative_slope if row.takes_slope else ActivationConfig().negative_slope


def _check_in_place(activation: Any, before: nn.Module | None) -> None:
    """Raise _LeftAloneError if other code may see that the activation overwrites its input."""
    fresh = isinstance(before, _FRESH_OUTPUT) and not before._forward_hooks
    fresh = fresh and type(before).__module__.startswith(("torch.nn.", "ganfast."))
    if activation.inplace and not fresh:
        raise _LeftAloneError(
            f"its {type(activation).__name__} changes a tensor that others may hold"
        )


def _runs_as_sequential(module: nn.Sequential) -> bool:
    cls = type(module)
    return (
        cls.forward is nn.Sequential.forward
        and cls.__iter__ is nn.Sequential.__iter__
        and "forward" not in vars(module)
        and not cls.__module__.startswith("torch.ao.")
    )


def _loss_stays(loss: Any) -> str:
    if _has_hooks(loss):
        return "has a hook"
    if "forward" in vars(loss):
        return "its forward was replaced"
    weights = {"weight"} if type(loss) is nn.BCELoss else {"weight", "pos_weight"}
    if not weights <= loss._buffers.keys():
        return "its weight is no buffer"
    return ""


def _fuse_pair(name: str, norm: Any, place: _Place, activation: Any, order: str) -> FusedLayer:
    placeholder = nn.Identity().train(activation.training)
    _convert(norm, _NORMS[type(norm)], activation, placeholder)
    act = ActivationConfig(_ACTIVATIONS[type(activation)], float(_slope(activation)), order)
    vars(norm).update(act._asdict())
    place.parent._modules[place.slot] = placeholder
    return FusedLayer(name, norm.num_features, *act)


def _convert(
    module: nn.Module, cls: type, activation: nn.Module | None, placeholder: nn.Module | None
) -> None:
    """Give the module its new class, and what `unfuse` needs."""
    settings = {name: vars(module)[name] for name in SETTINGS if name in vars(module)}
    origin = _Origin(type(module), settings, activation, placeholder)
    module.__class__ = cls
    if issubclass(cls, _BatchNorm):
        vars(module).setdefault("splits", 1)
    vars(module)[_ORIGIN] = origin


def _places(model: nn.Module) -> dict[nn.Module, list[_Place]]:
    """Return the slots of each module; a parent that is reached twice counts once."""
    places: dict[nn.Module, list[_Place]] = {}
    for child, place in _slots(model):
        places.setdefault(child, []).append(place)
    return places


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, _Place]]:
    for parent in model.modules():
        for slot, child in parent._modules.items():
            if child is not None:
                yield child, _Place(parent, slot)


def _has_activation(norm: nn.Module) -> bool:
    return isinstance(norm, Activated) and norm.activation is not None


def _has_hooks(module: nn.Module) -> bool:
    return any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
