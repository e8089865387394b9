"""What ``ganfast verify`` checks of InstanceNorm + activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ganfast.nn import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from ganfast.verify.batch_norm_act import (
    INPUTS,
    PLACES,
    C,
    compare_layer,
    compare_penalty,
    drawn,
)
from ganfast.verify.runner import CHECKS, Check

MODES: dict[str, dict[str, Any]] = {
    "training": {},
    "weight and bias": {"affine": True},
    "running statistics": {"affine": True, "track_running_stats": True},
    "evaluation": {"affine": True, "track_running_stats": True},
    "evaluation without running statistics": {"affine": True},
    "eps of 0.8": {"eps": 0.8},
}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _dense(*shape: int) -> Callable[[Callable[..., Tensor]], tuple[Tensor, Tensor]]:
    return lambda draw: (draw(*shape), draw(*shape))


def _channels_last(*shape: int) -> Callable[[Callable[..., Tensor]], tuple[Tensor, Tensor]]:
    def make(draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        x, dy = (draw(*shape).contiguous(memory_format=_LAST[len(shape)]) for _ in range(2))
        return x, dy

    return make


# With the layer for it. The sizes are odd, so that tails are met.
LAYOUTS: dict[str, tuple[type, Callable[[Callable[..., Tensor]], tuple[Tensor, Tensor]]]] = {
    "NC*": (InstanceNorm2d, _dense(5, C, 9, 7)),
    "channels-last": (InstanceNorm2d, _channels_last(5, C, 9, 7)),
    "channels-last, one image": (InstanceNorm2d, _channels_last(1, C, 9, 7)),
    "channels-last 3d": (InstanceNorm3d, _channels_last(2, C, 3, 5, 7)),
    "sliced": (
        InstanceNorm2d,
        lambda draw: (draw(10, C, 9, 7)[::2], draw(5, C, 9, 14)[..., ::2]),
    ),
    "(N, C, L)": (InstanceNorm1d, _dense(5, C, 65)),
}


def checks(dtype: torch.dtype, device: str) -> Iterator[Check]:
    """Yield the checks of one dtype."""
    for layout, (layer_class, make) in LAYOUTS.items():
        for activation, order in PLACES:
            form = {"activation": activation, "negative_slope": 0.2, "order": order}
            for mode, options in MODES.items():
                layer = partial(_layer, layer_class, mode, dtype, device, {**form, **options})
                name = f"{order} {activation}, {mode}"
                yield Check(layout, name, partial(compare_layer, layer, make, dtype, device))
            layer = partial(_layer, layer_class, "", dtype, device, {**form, "affine": True})
            for inputs, (change, dtypes) in INPUTS.items():
                if dtype in dtypes:
                    call = partial(compare_layer, layer, make, dtype, device, change)
                    yield Check(layout, f"{order} {activation}, {inputs}", call)
            if dtype in (torch.float32, torch.float64):
                call = partial(compare_penalty, layer, make, dtype, device)
                yield Check(layout, f"{order} {activation}, gradient penalty", call)


CHECKS["instance_norm_act"] = checks


def _layer(
    layer_class: type, mode: str, dtype: torch.dtype, device: str, options: dict[str, Any]
) -> Any:
    layer = drawn(layer_class(C, device=device, **options), dtype)
    return layer.train(not mode.startswith("evaluation"))
