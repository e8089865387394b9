"""Fuse the layers of a model that is already built, and undo it.

A fused layer stays the object it was: its class and four settings change. Optimizers, hooks and
names that refer to it, to its parameters or to its buffers therefore go on working.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ganfast import nn as fused_nn
from ganfast.activations import ACTIVATIONS, ActivationConfig, why_not_slope
from ganfast.fusion.example import Example
from ganfast.fusion.placeholder import FusedActivation, is_lost
from ganfast.fusion.report import FusedLayer, FusionReport

__all__ = ["fuse", "unfuse"]

_NORMS: dict[type, type] = {
    layer: getattr(fused_nn, layer.__name__)
    for torch_layer in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for layer in (torch_layer, getattr(fused_nn, torch_layer.__name__))
}
_LOSSES: dict[type, type] = {
    nn.BCELoss: fused_nn.BCELoss,
    nn.BCEWithLogitsLoss: fused_nn.BCEWithLogitsLoss,
}
_ACTIVATIONS = {row.layer: name for name, row in ACTIVATIONS.items() if name}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ADDING_DROPOUTS = (nn.AlphaDropout, nn.FeatureAlphaDropout)
# Layers whose output nobody else holds: an activation may overwrite it, or not, unseen.
_FRESH_OUTPUT = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, _BatchNorm)
_ORIGIN = "_before_fusion"


class _Origin(NamedTuple):
    """What `unfuse` needs; ``paired`` says whether a placeholder has the activation."""

    layer_class: type
    settings: dict[str, Any]
    paired: bool


class _Place(NamedTuple):
    parent: nn.Module
    slot: str


class Pair(NamedTuple):
    """A BatchNorm and an activation that may become one layer, and the activation's slots."""

    name: str
    norm: Any
    activation: Any
    places: list[_Place]
    order: str


def fuse(*models: nn.Module, act_norm: bool = False, example_inputs: Any = None) -> FusionReport:
    """Fuse each BatchNorm with the ReLU or LeakyReLU behind it in an nn.Sequential, in place.

    The BatchNorm becomes a :class:`ganfast.nn.BatchNorm2d` (1d, 3d) with an activation, and an
    ``nn.Identity`` takes the activation's slot and raises where that BatchNorm was replaced since.
    Layers, parameters and buffers stay the same objects; state_dict, indices, hooks, mode, dtype
    and device do not change. nn.BCELoss and nn.BCEWithLogitsLoss become ganfast's. Whatever might
    compute something else stays as it is, and the report says why.

    A Sequential's children may also be called one by one (``model[0](x)``). If such code uses the
    output of the BatchNorm itself, not only what the activation makes of it, fusion changes that
    value, and no inspection of the model can tell. ``example_inputs`` tells: the model runs on them
    in training and in evaluation, before and as if fused, and pairs that change any output or
    buffer are left. Pairs in other forwards than a Sequential's are then found as well: modules
    where each output of the BatchNorm is the input of the activation. The model's forward must use
    its layers alike for all inputs.

    Args:
        models: the whole model, so that layers used in two places are seen; several, as a
            generator, a discriminator and a criterion, are reported as 0, 1 and so on.
        act_norm: also fuse an activation with the BatchNorm behind it, if that BatchNorm is not
            itself followed by an activation.
        example_inputs: what one model is called with: a tensor, a tuple of positional arguments or
            a dictionary of named ones. Modes, buffers and random number generators are restored.

    Returns:
        The pairs and losses that were fused, and what was left with the reason. Its text is a
        table.

    Raises:
        TypeError: a model is not an nn.Module; there are several, or none, for one example.
        RuntimeError: the model computes something else each time for ``example_inputs``.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
        >>> fuse(model)
        fused  1  8 channels, leaky_relu(0.2)
        1 pair and 0 losses fused, 0 left as is
        >>> model[1]
        BatchNorm2d(8, eps=1e-05, momentum=0.1, ..., activation='leaky_relu', negative_slope=0.2)
    """
    model = _joined(models)
    if example_inputs is not None and len(models) != 1:
        raise TypeError(f"example_inputs are those of one model, got {len(models)} models")
    example = None if example_inputs is None else Example(model, example_inputs)
    places = _places(model)
    fed = _fed(example, places) if example else {}
    report, pairs = FusionReport(), []
    for name, module in list(model.named_modules()):
        if type(module) in _LOSSES:
            if reason := _loss_stays(module):
                report.skipped.append((name, reason))
            else:
                _convert(module, _LOSSES[type(module)], paired=False)
                report.losses.append((name, type(module).__name__))
        elif isinstance(module, _BatchNorm) and not _has_activation(module):
            try:
                pairs.append(_find_pair(name, module, places, act_norm, fed))
            except _LeftAloneError as reason:
                report.skipped.append((name, str(reason)))
                report.in_forward += isinstance(reason, _InForwardError)
    kept = example.unchanged(pairs) if example else pairs
    for pair in pairs:
        if pair in kept:
            report.fused.append(_fuse_pair(model, pair))
        else:
            report.skipped.append((pair.name, "fused, it would change what the example computes"))
    return report


def unfuse(*models: nn.Module) -> None:
    """Undo :func:`fuse`, in place: the BatchNorm's class and the very activation come back.

    Parameters, buffers and their values stay. Works on copies and unpickled models as well. Layers
    that were made as ``ganfast.nn`` layers with an activation are not touched. Where a tool has
    replaced a fused BatchNorm, its activation comes back behind the replacement.

    Raises:
        TypeError: a model is not an nn.Module.
        RuntimeError: the model has one part of a pair only, or a fused layer was parametrised
            since; nothing is changed then.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        >>> report = fuse(model)
        >>> unfuse(model)
        >>> model[1]
        ReLU()
    """
    model = _joined(models)
    places = _places(model)
    placeholders = {m.norm: m for m in places if isinstance(m, FusedActivation)}
    fused = [(n, m, vars(m)[_ORIGIN]) for n, m in model.named_modules() if _ORIGIN in vars(m)]
    _check_whole(fused, placeholders)
    for _, module, origin in fused:
        module.__class__ = origin.layer_class
        for setting in fused_nn.SETTINGS:
            vars(module).pop(setting, None)
        vars(module).update(origin.settings)
        del vars(module)[_ORIGIN]
    undone = {module for _, module, _ in fused}
    for norm, placeholder in placeholders.items():
        if norm in undone or is_lost(placeholder):
            placeholder.activation.train(placeholder.training)
            for parent, slot in places[placeholder]:
                parent._modules[slot] = placeholder.activation


def _check_whole(
    fused: list[tuple[str, Any, _Origin]], placeholders: dict[nn.Module, FusedActivation]
) -> None:
    """Raise RuntimeError where `unfuse` would tear a pair apart or drop what came later."""
    for name, module, origin in fused:
        if origin.paired and module not in placeholders:
            raise RuntimeError(
                f"{name}: the Identity in its activation's slot is not in this model: unfuse the "
                "model that was fused"
            )
        if parametrize.is_parametrized(module):
            raise RuntimeError(
                f"{name} was parametrised after fusion: call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
    norms = {module for _, module, _ in fused}
    for norm, placeholder in placeholders.items():
        if hasattr(norm, _ORIGIN) and norm not in norms and not is_lost(placeholder):
            raise RuntimeError(
                f"the BatchNorm that computes a {type(placeholder.activation).__name__} is not in "
                "this model: unfuse the model that was fused"
            )


class _LeftAloneError(Exception):
    """A BatchNorm is left alone; the message is the reason."""


class _InForwardError(_LeftAloneError):
    """Its reader is in the code of a forward."""


def _fed(example: Example, places: dict[nn.Module, list[_Place]]) -> dict[nn.Module, nn.Module]:
    """Return the BatchNorms whose every output an activation was seen to read, and that one."""
    norms = [m for m in places if isinstance(m, _BatchNorm) and not _has_activation(m)]
    readers = [m for m in places if type(m) in (*_ACTIVATIONS, *_ADDING_DROPOUTS)]
    found = example.feeds(norms, readers)
    return {norm: reader for norm, reader in found.items() if type(reader) in _ACTIVATIONS}


def _find_pair(
    name: str,
    norm: Any,
    places: dict[nn.Module, list[_Place]],
    act_norm: bool,
    fed: dict[nn.Module, nn.Module],
) -> Pair:
    """Return a BatchNorm and its activation, or raise _LeftAloneError."""
    _check_class(norm)
    try:
        place, order = _neighbour(norm, places.get(norm, []), act_norm)
        activation, slots = place.parent._modules[place.slot], [place]
    except _LeftAloneError:
        if norm not in fed:
            raise
        activation, slots, order = fed[norm], places[fed[norm]], "norm_act"
    _check_hooks(norm, activation, order)
    if reason := why_not_slope(_slope(activation)):
        raise _LeftAloneError(reason)
    return Pair(name, norm, activation, slots, order)


def _neighbour(norm: Any, places: list[_Place], act_norm: bool) -> tuple[_Place, str]:
    """Return the place of a BatchNorm's activation in an nn.Sequential, and the order."""
    if len(places) != 1:
        reason = f"is used in {len(places)} places" if places else "stands alone"
        raise _InForwardError(reason)
    sequential = places[0].parent
    if not isinstance(sequential, nn.Sequential):
        raise _InForwardError("outside nn.Sequential")
    if not _runs_as_sequential(sequential):
        raise _InForwardError(f"{type(sequential).__name__} has a forward of its own")
    nothing = ("", None)
    slots = [nothing, nothing, *sequential._modules.items()]
    index = [slot for slot, _ in slots].index(places[0].slot, 2)
    (_, before), in_front = slots[index - 2 : index]
    behind = next((s for s in slots[index + 1 :] if not _returns_its_input(s[1])), nothing)
    if type(behind[1]) in _ACTIVATIONS:
        return _Place(sequential, behind[0]), "norm_act"
    if act_norm and type(in_front[1]) in _ACTIVATIONS:
        _check_in_place(in_front[1], before)
        return _Place(sequential, in_front[0]), "act_norm"
    if behind is nothing:
        raise _LeftAloneError("last in its Sequential")
    raise _LeftAloneError(f"followed by {type(behind[1]).__name__}")


def _check_class(norm: Any) -> None:
    """Raise _LeftAloneError where the layer may compute something else than a BatchNorm."""
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
        own = type(norm).forward is not _BatchNorm.forward or "forward" in vars(norm)
        raise _LeftAloneError(f"{name} overrides forward" if own else f"{name} is a subclass")
    if "forward" in vars(norm):
        raise _LeftAloneError("its forward was replaced")
    if not {"weight", "bias"} <= norm._parameters.keys():
        raise _LeftAloneError("its weight or bias is computed by a hook")
    if not {"running_mean", "running_var", "num_batches_tracked"} <= norm._buffers.keys():
        raise _LeftAloneError("its running statistics are no buffers")


def _check_hooks(norm: Any, activation: Any, order: str) -> None:
    """Raise _LeftAloneError where a hook would see other tensors than before."""
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
    """Raise _LeftAloneError where somebody may see that the activation overwrites its input."""
    fresh = isinstance(before, _FRESH_OUTPUT) and not before._forward_hooks
    fresh = fresh and type(before).__module__.startswith(("torch.nn.", "ganfast."))
    if activation.inplace and not fresh:
        raise _LeftAloneError(
            f"its {type(activation).__name__} changes a tensor that others may hold"
        )


def _returns_its_input(module: Any) -> bool:
    """Return whether a layer between a BatchNorm and its activation leaves the values alone.

    A dropout may get another p later, when the activation acts in front of it: dropout multiplies
    by numbers c from 0 up, and a(c z) = c a(z) for every activation that is fused.
    """
    if _has_hooks(module) or "forward" in vars(module):
        return False
    return type(module) is nn.Identity or (type(module) in _DROPOUTS and module.p == 0)


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


def _fuse_pair(model: nn.Module, pair: Pair) -> FusedLayer:
    norm, activation = pair.norm, pair.activation
    parent = pair.places[0].parent
    if norm not in parent._modules.values():  # the last that holds both, and none of its children
        parent = [m for m in model.modules() if {norm, activation} <= set(m.modules())][-1]
    placeholder = FusedActivation(activation, norm, parent)
    _convert(norm, _NORMS[type(norm)], paired=True)
    act = ActivationConfig(_ACTIVATIONS[type(activation)], float(_slope(activation)), pair.order)
    vars(norm).update(act._asdict())
    for holder, slot in pair.places:
        holder._modules[slot] = placeholder
    return FusedLayer(pair.name, norm.num_features, *act)


def _convert(module: nn.Module, cls: type, *, paired: bool) -> None:
    """Give the module its new class, and what `unfuse` needs."""
    settings = {name: vars(module)[name] for name in fused_nn.SETTINGS if name in vars(module)}
    origin = _Origin(type(module), settings, paired)
    module.__class__ = cls
    if cls in _NORMS:
        vars(module).setdefault("splits", 1)
    vars(module)[_ORIGIN] = origin


def _places(model: nn.Module) -> dict[nn.Module, list[_Place]]:
    """Return the slots that hold each module; a parent that is reached twice counts once."""
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
    return isinstance(norm, fused_nn._BatchNormAct) and norm.activation is not None


def _has_hooks(module: nn.Module) -> bool:
    return any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))


def _joined(models: tuple[Any, ...]) -> nn.Module:
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    joined: nn.Module = models[0] if len(models) == 1 else nn.ModuleList(models)
    return joined
