"""Which layers `fuse` may convert, and why the others stay as they are."""

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
from ganfast.nn.batch_norm import Activated

__all__ = [
    "ACTIVATION_NAMES",
    "LOSSES",
    "NORMS",
    "InForwardError",
    "LeftAloneError",
    "Pair",
    "Place",
    "find_pair",
    "has_activation",
    "is_candidate",
    "loss_stays",
    "places_of",
]

NORMS: dict[type, type] = {
    layer: getattr(fused_nn, layer.__name__)
    for torch_layer in (
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
        nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    )
    for layer in (torch_layer, getattr(fused_nn, torch_layer.__name__))
}  # fmt: skip
LOSSES: dict[type, type] = {
    nn.BCELoss: fused_nn.BCELoss,
    nn.BCEWithLogitsLoss: fused_nn.BCEWithLogitsLoss,
}
ACTIVATION_NAMES = {row.layer: name for name, row in ACTIVATIONS.items() if name}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# Layers that return a new tensor: no other code sees whether an activation overwrites it.
_FRESH_OUTPUT = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, _BatchNorm, _InstanceNorm)


class Place(NamedTuple):
    """A slot that holds a module."""

    parent: nn.Module
    slot: str


class Pair(NamedTuple):
    """A BatchNorm and an activation that may become one layer, and the activation's slots."""

    name: str
    norm: Any
    activation: Any
    places: list[Place]
    order: str

    @property
    def config(self) -> ActivationConfig:
        """The settings of the fused layer."""
        name = ACTIVATION_NAMES[type(self.activation)]
        return ActivationConfig(name, float(_slope(self.activation)), self.order)


class LeftAloneError(Exception):
    """Raised for a BatchNorm that is left as it is; the message is the reason."""


class InForwardError(LeftAloneError):
    """Raised if its reader stands in the code of a forward."""


def find_pair(
    name: str,
    norm: Any,
    places: dict[nn.Module, list[Place]],
    act_norm: bool,
    fed: dict[nn.Module, nn.Module],
    taken: set[Place],
) -> Pair:
    """Return a BatchNorm and its activation, or raise LeftAloneError.

    Args:
        name: of the BatchNorm.
        norm: the BatchNorm.
        places: the slots of every module.
        act_norm: whether an activation in front of it counts.
        fed: BatchNorms whose outputs an activation was seen to read, and that activation.
        taken: slots of activations that other BatchNorms have.
    """
    _check_class(norm)
    try:
        place, order = _neighbour(norm, places.get(norm, []), act_norm, taken)
        activation, slots = place.parent._modules[place.slot], [place]
    except LeftAloneError:
        if norm not in fed:
            raise
        activation, slots, order = fed[norm], places[fed[norm]], "norm_act"
    if not taken.isdisjoint(slots):
        raise LeftAloneError(f"its {type(activation).__name__} belongs to another BatchNorm")
    _check_hooks(norm, activation, order)
    if reason := why_not_slope(_slope(activation)):
        raise LeftAloneError(reason)
    return Pair(name, norm, activation, slots, order)


def _neighbour(
    norm: Any, places: list[Place], act_norm: bool, taken: set[Place]
) -> tuple[Place, str]:
    """Return the place of a BatchNorm's activation in an nn.Sequential, and the order."""
    if len(places) != 1:
        reason = f"is used in {len(places)} places" if places else "stands alone"
        raise InForwardError(reason)
    sequential = places[0].parent
    if not isinstance(sequential, nn.Sequential):
        raise InForwardError("outside nn.Sequential")
    if not _runs_as_sequential(sequential):
        raise InForwardError(f"{type(sequential).__name__} has a forward of its own")
    nothing = ("", None)
    slots = [nothing, nothing, *sequential._modules.items()]
    index = [slot for slot, _ in slots].index(places[0].slot, 2)
    (_, before), in_front = slots[index - 2 : index]
    behind = next((s for s in slots[index + 1 :] if not _returns_its_input(s[1])), nothing)
    if type(behind[1]) in ACTIVATION_NAMES:
        return Place(sequential, behind[0]), "norm_act"
    first = Place(sequential, in_front[0])
    if act_norm and type(in_front[1]) in ACTIVATION_NAMES and first not in taken:
        _check_in_place(in_front[1], before)
        return first, "act_norm"
    if behind is nothing:
        raise LeftAloneError("last in its Sequential")
    raise LeftAloneError(f"followed by {type(behind[1]).__name__}")


def _check_class(norm: Any) -> None:
    """Raise LeftAloneError if the layer may compute something else than torch's."""
    name = type(norm).__name__
    if isinstance(norm, (nn.SyncBatchNorm, fused_nn.SyncBatchNorm)):
        raise LeftAloneError("SyncBatchNorm: fuse first, then call ganfast.convert_sync_batchnorm")
    if isinstance(norm, LazyModuleMixin):
        raise LeftAloneError(f"{name} has no channels yet: fuse after a first batch")
    if type(norm).__module__.startswith("torch.ao.") or getattr(norm, "qconfig", None) is not None:
        raise LeftAloneError(f"{name} is quantised or prepared for it")
    if parametrize.is_parametrized(norm):
        raise LeftAloneError("is parametrised")
    if type(norm) not in NORMS:
        stock_forward = type(norm).forward in (_BatchNorm.forward, _InstanceNorm.forward)
        own = not stock_forward or "forward" in vars(norm)
        raise LeftAloneError(f"{name} overrides forward" if own else f"{name} is a subclass")
    if "forward" in vars(norm):
        raise LeftAloneError("its forward was replaced")
    if not {"weight", "bias"} <= norm._parameters.keys():
        raise LeftAloneError("its weight or bias is computed by a hook")
    if not {"running_mean", "running_var", "num_batches_tracked"} <= norm._buffers.keys():
        raise LeftAloneError("its running statistics are no buffers")


def _check_hooks(norm: Any, activation: Any, order: str) -> None:
    """Raise LeftAloneError if a hook would see other tensors than before."""
    # Behind the fused layer lies the activation's output, so gradients differ there as well.
    if norm._forward_hooks:
        raise LeftAloneError("has a forward hook")
    if norm._backward_hooks or norm._backward_pre_hooks:
        raise LeftAloneError("has a backward hook")
    if order == "act_norm" and norm._forward_pre_hooks:
        raise LeftAloneError("has a forward pre-hook")
    name = type(activation).__name__
    if _has_hooks(activation):
        raise LeftAloneError(f"its {name} has a hook")
    if "forward" in vars(activation):
        raise LeftAloneError(f"the forward of its {name} was replaced")


def _slope(activation: Any) -> Any:
    row = ACTIVATIONS[ACTIVATION_NAMES[type(activation)]]
    return activation.negative_slope if row.takes_slope else ActivationConfig().negative_slope


def _check_in_place(activation: Any, before: nn.Module | None) -> None:
    """Raise LeftAloneError if other code may see that the activation overwrites its input."""
    fresh = isinstance(before, _FRESH_OUTPUT) and not before._forward_hooks
    fresh = fresh and type(before).__module__.startswith(("torch.nn.", "ganfast."))
    if activation.inplace and not fresh:
        raise LeftAloneError(
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


def loss_stays(loss: Any) -> str:
    if _has_hooks(loss):
        return "has a hook"
    if "forward" in vars(loss):
        return "its forward was replaced"
    weights = {"weight"} if type(loss) is nn.BCELoss else {"weight", "pos_weight"}
    if not weights <= loss._buffers.keys():
        return "its weight is no buffer"
    return ""


def places_of(model: nn.Module) -> dict[nn.Module, list[Place]]:
    """Return the slots of each module; a parent that is reached twice counts once."""
    places: dict[nn.Module, list[Place]] = {}
    for child, place in _slots(model):
        places.setdefault(child, []).append(place)
    return places


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, Place]]:
    for parent in model.modules():
        for slot, child in parent._modules.items():
            if child is not None:
                yield child, Place(parent, slot)


def is_candidate(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer without an activation of its own."""
    return isinstance(module, (_BatchNorm, _InstanceNorm)) and not has_activation(module)


def has_activation(module: nn.Module) -> bool:
    """Return whether a module is a layer with a fused activation."""
    return isinstance(module, Activated) and module.activation is not None


def _has_hooks(module: nn.Module) -> bool:
    return any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))
