"""Adam's state from a checkpoint, checked: its fused kernels trust the shapes they are given."""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["restore_adam"]

# The learning rate is the run's own to change; the others follow from device and models.
_FREE = ("params", "lr", "capturable")


def restore_adam(optimizer: torch.optim.Adam, state: dict[str, Any]) -> None:
    """Load what ``optimizer.state_dict()`` returned.

    Raises:
        ValueError: the state does not fit the optimizer's parameters and options.
    """
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, expected in zip(optimizer.param_groups, own, strict=True):
        for name, value in expected.items():
            found = group.get(name)
            if name not in _FREE and (type(found) is not type(value) or found != value):
                raise ValueError(f"Adam's {name} is {found!r}, this run has {value!r}")
        if not 0 < float(group["lr"]) < math.inf:
            raise ValueError(f"Adam's lr must be positive, got {group['lr']}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not set(optimizer.state) <= set(parameters):
        raise ValueError("Adam has a state for parameters that the model does not have")
    for parameter, values in optimizer.state.items():
        shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        found = {name: getattr(value, "shape", None) for name, value in values.items()}
        if found != shapes or any(not v.is_floating_point() for v in values.values()):
            raise ValueError(f"Adam's state of a parameter must be {shapes}, got {found}")
