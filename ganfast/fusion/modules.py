"""Fuse the layers of an existing model, and undo it.

A fused layer stays the same object: only its class and four settings change. Optimizers, hooks and
names that refer to it, to its parameters or to its buffers therefore keep working.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ganfast.fusion.example import Example
from ganfast.fusion.pairs import (
    ACTIVATION_NAMES,
    LOSSES,
    NORMS,
    InForwardError,
    LeftAloneError,
    Pair,
    Place,
    find_pair,
    has_activation,
    is_candidate,
    loss_stays,
    places_of,
)
from ganfast.fusion.placeholder import FusedActivation
from ganfast.fusion.report import FusedLayer, FusionReport
from ganfast.nn.batch_norm import SETTINGS

__all__ = ["fuse", "unfuse"]

_ORIGIN = "_before_fusion"
_SCRIPTED = {layer.__name__ for layer in (*NORMS, *LOSSES)}


class _Origin(NamedTuple):
    """What `unfuse` needs; ``paired`` says whether a placeholder has the activation."""

    layer_class: type
    settings: dict[str, Any]
    paired: bool


def fuse(*models: nn.Module, act_norm: bool = False, example_inputs: Any = None) -> FusionReport:
    """Fuse each BatchNorm with the ReLU or LeakyReLU behind it in an nn.Sequential, in place.

    InstanceNorm is fused likewise. The BatchNorm becomes a :class:`ganfast.nn.BatchNorm2d` (1d,
    3d), an InstanceNorm a :class:`ganfast.nn.InstanceNorm2d`, with an activation, and an
    ``nn.Identity`` takes the activation's slot and raises if that layer was replaced since. Layers,
    parameters and buffers stay the same objects; state_dict, indices, hooks, mode, dtype and device
    do not change. nn.BCELoss and nn.BCEWithLogitsLoss become ganfast's. Whatever might compute
    something else stays as it is, and the report says why.

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

    Examples:
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
    places = places_of(model)
    fed = _fed(example, places) if example else {}
    report = FusionReport()
    pairs: list[Pair] = []
    for name, module in list(model.named_modules()):
        if _ORIGIN in vars(module):
            report.skipped.append((name, "already fused"))
        elif type(module) in LOSSES:
            if reason := loss_stays(module):
                report.skipped.append((name, reason))
            else:
                _convert(module, LOSSES[type(module)], paired=False)
                report.losses.append((name, type(module).__name__))
        elif has_activation(module):
            report.skipped.append((name, "has an activation"))
        elif isinstance(module, torch.jit.ScriptModule) and module.original_name in _SCRIPTED:
            report.skipped.append((name, "scripted: fuse before torch.jit.script"))
        elif is_candidate(module):
            try:
                taken = {place for pair in pairs for place in pair.places}
                pairs.append(find_pair(name, module, places, act_norm, fed, taken))
            except LeftAloneError as reason:
                report.skipped.append((name, str(reason)))
                report.in_forward += isinstance(reason, InForwardError)
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

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        >>> report = fuse(model)
        >>> unfuse(model)
        >>> model[1]
        ReLU()
    """
    model = _joined(models)
    places = places_of(model)
    placeholders = {m.norm: m for m in places if isinstance(m, FusedActivation)}
    fused = [(n, m, vars(m)[_ORIGIN]) for n, m in model.named_modules() if _ORIGIN in vars(m)]
    _check_whole(fused, placeholders)
    for _, module, origin in fused:
        module.__class__ = origin.layer_class
        for setting in SETTINGS:
            vars(module).pop(setting, None)
        vars(module).update(origin.settings)
        del vars(module)[_ORIGIN]
    undone = {module for _, module, _ in fused}
    for norm, placeholder in placeholders.items():
        if norm in undone or placeholder.is_lost():
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
        if hasattr(norm, _ORIGIN) and norm not in norms and not placeholder.is_lost():
            raise RuntimeError(
                f"the layer that computes a {type(placeholder.activation).__name__} is not in "
                "this model: unfuse the model that was fused"
            )


def _fed(example: Example, places: dict[nn.Module, list[Place]]) -> dict[nn.Module, nn.Module]:
    """Return the BatchNorms whose every output an activation was seen to read, and that one."""
    norms = [m for m in places if is_candidate(m)]
    # A dropout that adds, and passes its input on now, may later do something else.
    adding = (nn.AlphaDropout, nn.FeatureAlphaDropout)
    readers = [m for m in places if type(m) in (*ACTIVATION_NAMES, *adding)]
    found = example.feeds(norms, readers)
    return {norm: reader for norm, reader in found.items() if type(reader) in ACTIVATION_NAMES}


def _fuse_pair(model: nn.Module, pair: Pair) -> FusedLayer:
    norm, activation = pair.norm, pair.activation
    parent = pair.places[0].parent
    if norm not in parent._modules.values():  # the last that holds both, and none of its children
        parent = [m for m in model.modules() if {norm, activation} <= set(m.modules())][-1]
    placeholder = FusedActivation(activation, norm, parent)
    _convert(norm, NORMS[type(norm)], paired=True)
    vars(norm).update(pair.config._asdict())
    for holder, slot in pair.places:
        holder._modules[slot] = placeholder
    return FusedLayer(pair.name, norm.num_features, *pair.config)


def _convert(module: nn.Module, cls: type, *, paired: bool) -> None:
    """Give the module its new class, and what `unfuse` needs."""
    settings = {name: vars(module)[name] for name in SETTINGS if name in vars(module)}
    origin = _Origin(type(module), settings, paired)
    module.__class__ = cls
    if issubclass(cls, _BatchNorm):
        vars(module).setdefault("splits", 1)
    vars(module)[_ORIGIN] = origin


def _joined(models: tuple[Any, ...]) -> nn.Module:
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    joined: nn.Module = models[0] if len(models) == 1 else nn.ModuleList(models)
    return joined
