"""Benchmark cases of BatchNorm and InstanceNorm + activation, ours beside torch's pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ganfast import nn as fused_nn
from ganfast.bench.case import (
    BACKENDS,
    PASSES,
    SUITES,
    Case,
    Options,
    Providers,
    Rotation,
    Suite,
    checked,
)
from ganfast.bench.peers import layer

__all__ = ["DCGAN_SHAPES", "INSTANCE_SHAPES", "TINY_SHAPE", "overhead", "suite"]

DCGAN_SHAPES: tuple[tuple[int, ...], ...] = (
    *((128, 64, 32, 32), (128, 128, 16, 16), (128, 256, 8, 8), (128, 512, 4, 4)),
    *((16, 64, 32, 32), (16, 128, 16, 16), (16, 256, 8, 8), (16, 512, 4, 4)),
    (128, 1024),
)
INSTANCE_SHAPES: tuple[tuple[int, ...], ...] = (
    # Of CycleGAN's residual blocks, pix2pixHD's first layers, a block of nnU-Net; larger batches.
    *((1, 256, 64, 64), (1, 64, 256, 256), (2, 32, 32, 64, 64)),
    *((16, 256, 16, 16), (16, 64, 64, 64), (16, 32, 16, 16, 16)),
)
"""Shapes for InstanceNorm, whose variants begin with "instance"."""
TINY_SHAPE = (2, 8, 4, 4)
# Tensors of x's size that must be read or written: x y; x dy dx as well; x dy ddx d_dy d_x.
TENSORS_MOVED = {"forward": 2, "forward+backward": 5, "double backward": 5}
FOR_IMAGES_ONLY = ("timm", "inplace_abn")
CANNOT = {"double backward": ("compile", "timm", "inplace_abn")}
"""Peers without second derivatives, or with those of torch."""


def suite(options: Options) -> Iterator[Case]:
    """Yield the cases of ``ganfast bench ops``; those of InstanceNorm unless shapes are given.

    Examples:
        >>> case, = suite(Options(passes=("forward",), shapes=((4, 3, 2, 2),)))
        >>> case.names
        ('ganfast', 'eager', 'clone')
        >>> case.bytes_moved
        384
    """
    given = options.passes or PASSES[:2], options.dtypes, options.layouts
    batch, instance = options.shapes or DCGAN_SHAPES, () if options.shapes else INSTANCE_SHAPES
    for kind, shapes in (("BatchNorm", batch), ("InstanceNorm", instance)):
        for passes, dtype, layout, shape in itertools.product(*given, shapes):
            yield _case(kind, passes, shape, dtype, layout == "channels-last", options)


def overhead(options: Options) -> Iterator[Case]:
    """Yield the cases of ``ganfast bench overhead``: host time, on a tensor of 256 values."""
    for passes in options.passes or PASSES[:2]:
        yield _case("BatchNorm", passes, TINY_SHAPE, "float32", False, options)._replace(
            bytes_moved=0
        )


PEERS = ("eager", "compile", *BACKENDS, *FOR_IMAGES_ONLY)
SUITES["ops"] = Suite(suite, PEERS)
SUITES["overhead"] = Suite(overhead, PEERS, ("dtype", "layout", "shapes"))


def _case(
    kind: str,
    passes: str,
    shape: tuple[int, ...],
    dtype: str,
    channels_last: bool,
    options: Options,
) -> Case:
    if kind == "BatchNorm" and len(shape) not in (2, 4):
        raise ValueError(f"shapes are NxC or NxCxHxW, got {shape}")
    unlike = kind == "InstanceNorm" or len(shape) == 2
    without = (*CANNOT.get(passes, ()), *(FOR_IMAGES_ONLY if unlike else ()))
    names = ("ganfast", *(name for name in options.against if name not in without))
    size_bytes = math.prod(shape) * getattr(torch, dtype).itemsize
    moved = TENSORS_MOVED[passes] * size_bytes
    inputs = options.inputs(moved)

    def build() -> Providers:
        return _build(kind, passes, shape, dtype, channels_last, names, inputs, options.device)

    variant = "instance " * (kind == "InstanceNorm") + dtype + " channels-last" * channels_last
    return Case(
        "x".join(map(str, shape)), variant, passes, build, (*names, "clone"), moved, 2 * size_bytes
    )


def _build(
    kind: str,
    passes: str,
    shape: tuple[int, ...],
    dtype: str,
    channels_last: bool,
    names: tuple[str, ...],
    inputs: int,
    device: str,
) -> Providers:
    torch.manual_seed(0)
    name_of_class = f"{kind}{max(1, len(shape) - 2)}d"
    options = {"affine": True, "device": device}
    ours = getattr(fused_nn, name_of_class)(
        shape[1], activation="leaky_relu", negative_slope=0.2, **options
    )
    norm = getattr(nn, name_of_class)(shape[1], **options)
    pair = nn.Sequential(norm, nn.LeakyReLU(0.2))
    layers = {name: layer(name, pair, ours) for name in names}
    calls: dict[str, list[Callable[[], Any]]] = {name: [] for name in (*names, "clone")}
    for _ in range(inputs):
        x, dy = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for _ in range(2))
        if channels_last and len(shape) > 3:
            last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
            x, dy = (t.contiguous(memory_format=last) for t in (x, dy))
        calls["clone"].append(x.clone)
        x = x.detach().requires_grad_()
        for name in names:
            calls[name].append(_call(passes, layers[name], x, dy))
    tolerance = torch.finfo(getattr(torch, dtype)).eps ** 0.5
    checked({name: calls[name][0] for name in names}, tolerance)
    return {name: each[0] if inputs == 1 else Rotation(each) for name, each in calls.items()}


def _call(passes: str, model: Any, x: Tensor, dy: Tensor) -> Callable[[], Any]:
    if passes == "forward":
        return lambda: model(x).detach()
    inputs = [x, *model.parameters()]
    if passes == "forward+backward":
        return lambda: torch.autograd.grad(model(x), inputs, dy)

    direction = dy.flip(0)
    gradient = dy.clone().requires_grad_()
    (dx,) = torch.autograd.grad(model(x), x, gradient, create_graph=True)
    wanted = [x, gradient, *list(model.parameters())[:1]]  # x, dy and the weight
    return lambda: torch.autograd.grad(dx, wanted, direction, retain_graph=True)
