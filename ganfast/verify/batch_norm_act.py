"""The checks of BatchNorm + activation in ``ganfast verify``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.activations import ACTIVATIONS, ORDERS
from ganfast.nn import BatchNorm1d, BatchNorm2d
from ganfast.verify.bounds import layer_bounds, penalty_bounds
from ganfast.verify.exactness import Verdict, judge, run, twin
from ganfast.verify.runner import CHECKS, Check

N, C, H, W = 8, 18, 9, 7  # odd sizes, so that loops have tails
PLACES = [(a, order) for order in ORDERS for a in ACTIVATIONS if a or order == "norm_act"]
"""Each activation on each side of the normalisation."""
MODES: dict[str, dict[str, Any]] = {
    "training": {},
    "evaluation": {},
    "evaluation without running statistics": {"track_running_stats": False},
    "splits of 2": {"splits": 2},
    "cumulative average": {"momentum": None},
    "no weight and bias": {"affine": False},
    "eps of 0.8": {"eps": 0.8},
}


def _images(draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    return draw(N, C, H, W), draw(N, C, H, W)


def _channels_last(draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x, dy = _images(draw)
    return x.contiguous(memory_format=torch.channels_last), dy.contiguous(
        memory_format=torch.channels_last
    )


LAYOUTS: dict[str, Callable[[Callable[..., Tensor]], tuple[Tensor, Tensor]]] = {
    "NC*": _images,
    "channels-last": _channels_last,
    "sliced": lambda draw: (draw(2 * N, C, H, W)[::2], draw(N, C, H, 2 * W)[..., ::2]),
    "transposed": lambda draw: (draw(N, C, W, H).mT, draw(N, C, W, H).mT),
    "expanded dy": lambda draw: (draw(N, C, H, W), draw(N, C, 1, 1).expand(N, C, H, W)),
    "(N, C)": lambda draw: (draw(N * 9, C), draw(N * 9, C)),
}


def _offset(x: Tensor) -> Tensor:
    """Return values of 1e4 with a variance of 1e-4, which plain sums of squares cannot resolve."""
    return 1e4 + 1e-2 * x


def _magnitudes(x: Tensor) -> Tensor:
    """Return channels that span eight orders of magnitude."""
    scale = torch.logspace(-4, 4, C, dtype=x.dtype, device=x.device)
    return x * scale.view(1, C, *[1] * (x.dim() - 2))


# With the dtypes they are for. In float64 an offset tests little: the reference does not centre. In
# float16 eight orders of magnitude overflow.
INPUTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[torch.dtype, ...]]] = {
    "1e4 with variance 1e-4": (_offset, (torch.float32, torch.bfloat16, torch.float16)),
    "eight orders of magnitude": (
        _magnitudes,
        (torch.float32, torch.float64, torch.bfloat16),
    ),
}


def checks(dtype: torch.dtype, device: str) -> Iterator[Check]:
    """Yield the checks of one dtype."""
    for layout, make in LAYOUTS.items():
        for activation, order in PLACES:
            for mode, options in MODES.items():
                name = f"{order} {activation}, {mode}"
                layer = partial(_layer, layout, mode, dtype, device, activation, order, options)
                yield Check(layout, name, partial(compare_layer, layer, make, dtype, device))
            layer = partial(_layer, layout, "training", dtype, device, activation, order, {})
            for inputs, (change, dtypes) in INPUTS.items():
                if dtype not in dtypes:
                    continue
                call = partial(compare_layer, layer, make, dtype, device, change)
                yield Check(layout, f"{order} {activation}, {inputs}", call)
            for weight in (0.0, 1e-30, -2.0):
                call = partial(compare_layer, layer, make, dtype, device, weight=weight)
                yield Check(layout, f"{order} {activation}, weights of {weight}", call)
            if dtype in (torch.float32, torch.float64):
                call = partial(compare_penalty, layer, make, dtype, device)
                yield Check(layout, f"{order} {activation}, gradient penalty", call)


CHECKS["batch_norm_act"] = checks


def _layer(
    layout: str,
    mode: str,
    dtype: torch.dtype,
    device: str,
    activation: str | None,
    order: str,
    options: dict[str, Any],
) -> Any:
    layer_class = BatchNorm1d if layout == "(N, C)" else BatchNorm2d
    layer = layer_class(
        C, activation=activation, negative_slope=0.2, order=order, device=device, **options
    )
    return drawn(layer, dtype).train(not mode.startswith("evaluation"))


def drawn(layer: Any, dtype: torch.dtype) -> Any:
    """Return a layer for inputs of ``dtype``, its parameters and buffers drawn."""
    layer = layer.double() if dtype == torch.float64 else layer
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(drawn.square() + 0.5 if name == "running_var" else drawn)
    return layer


def _inputs(
    make: Callable[[Callable[..., Tensor]], tuple[Tensor, Tensor]], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return make(lambda *shape: torch.randn(shape, generator=generator).to(device, dtype))


def compare_layer(
    make_layer: Callable[[], Any],
    make: Callable[[Callable[..., Tensor]], tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    device: str,
    change: Callable[[Tensor], Tensor] | None = None,
    weight: float | None = None,
) -> Iterable[Verdict]:
    layer = make_layer()
    if weight is not None:
        nn.init.constant_(layer.weight, weight)
    pair, exact_pair = twin(layer), twin(layer, torch.float64)
    x, dy = _inputs(make, dtype, device)
    x = x if change is None else change(x)
    bounds = layer_bounds(layer, x, dy)
    ours = run(layer, x, dy)
    splits = getattr(layer, "splits", 1)
    torchs = run(pair, _plain(x), _plain(dy), splits=splits)
    exact = run(exact_pair, x.contiguous().double(), dy.contiguous().double(), splits=splits)
    return _judge_all(ours, torchs, exact, bounds)


def compare_penalty(
    make_layer: Callable[[], Any],
    make: Callable[[Callable[..., Tensor]], tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    device: str,
) -> Iterable[Verdict]:
    layer = make_layer()
    x, dy = _inputs(make, dtype, device)
    exact = _penalty(twin(layer, torch.float64), x.contiguous().double(), dy.contiguous().double())
    bounds = penalty_bounds(layer, x, dy, exact["dx"])
    ours, torchs = _penalty(layer, x, dy), _penalty(twin(layer), _plain(x), _plain(dy))
    return _judge_all({name: ours[name] for name in bounds}, torchs, exact, bounds)


def _plain(x: Tensor) -> Tensor:
    """Return x as torch's own kernels take it, channels-last or contiguous."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _penalty(module: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Any]:
    """Return dx and the gradients of a penalty on it, whose direction is dx itself."""
    x, dy = x.detach().requires_grad_(), dy.detach().requires_grad_()
    weight = next(iter(module.parameters()))
    (dx,) = torch.autograd.grad(module(x), x, dy, create_graph=True)
    found = torch.autograd.grad(dx.square().sum(), [x, dy, weight], allow_unused=True)
    return {"dx": dx.detach()} | dict(zip(("d_x", "d_dy", "d_weight"), found, strict=True))


def _judge_all(
    ours: Mapping[str, Tensor | None],
    torchs: Mapping[str, Tensor | None],
    exact: Mapping[str, Tensor | None],
    bounds: dict[str, Tensor],
) -> list[Verdict]:
    verdicts = []
    for name, value in ours.items():
        theirs, reference = torchs[name], exact[name]
        if value is None or theirs is None or reference is None:
            continue
        bound: Tensor | float = bounds.get(name, 0.0)
        if not value.is_floating_point():  # the counter
            value, theirs = value.double(), theirs.double()
        verdicts.append(judge(name, value, theirs, reference.double(), bound))
    return verdicts
