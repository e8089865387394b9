"""Benchmark cases of BatchNorm + activation: the DCGAN shapes, ours beside torch's pair."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.bench.case import PASSES, SUITES, Case, Options, check_results
from ganfast.nn import BatchNorm1d, BatchNorm2d

__all__ = ["DCGAN_SHAPES", "TINY_SHAPE", "cases"]

DCGAN_SHAPES: tuple[tuple[int, ...], ...] = (
    *((128, 64, 32, 32), (128, 128, 16, 16), (128, 256, 8, 8), (128, 512, 4, 4)),
    *((16, 64, 32, 32), (16, 128, 16, 16), (16, 256, 8, 8), (16, 512, 4, 4)),
    (128, 1024),
)
TINY_SHAPE = (2, 8, 4, 4)
# Tensors of x's size that must be read or written: x y; x dy dx as well; x dy ddx d_dy d_x.
TENSORS_MOVED = {"forward": 2, "forward+backward": 5, "double backward": 5}


def cases(
    passes: str,
    *,
    shapes: tuple[tuple[int, ...], ...] = DCGAN_SHAPES,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    against: tuple[str, ...] = ("eager", "compile"),
    device: str = "cpu",
) -> list[Case]:
    """Build the cases of one pass over the shapes, checked for equal values.

    Args:
        passes: "forward", "forward+backward" or "double backward".
        shapes: shapes (N, C) or (N, C, H, W).
        dtype: of the input; parameters are float32.
        channels_last: whether images are laid out channels-last.
        against: "eager" (torch's BatchNorm and LeakyReLU) and "compile" (the same, compiled).
        device: where.

    Raises:
        ValueError: ``passes`` is not known.
        AssertionError: a provider computes something else.

    Example::

        >>> case, = cases("forward", shapes=((4, 3, 2, 2),), against=("eager",))
        >>> list(case.providers)
        ['ganfast', 'eager', 'clone']
    """
    if passes not in PASSES:
        raise ValueError(f"passes must be one of {', '.join(map(repr, PASSES))}, got {passes!r}")
    return [_case(passes, s, dtype, channels_last, against, device) for s in shapes]


def suite(options: Options) -> Iterator[Case]:
    """Yield the cases of ``ganfast bench ops``."""
    passes = options.passes or PASSES[:2]
    for each, dtype, layout, shape in itertools.product(
        passes, options.dtypes, options.layouts, options.shapes or DCGAN_SHAPES
    ):
        yield from cases(
            each,
            shapes=(shape,),
            dtype=getattr(torch, dtype),
            channels_last=layout == "channels-last",
            against=options.against,
            device=options.device,
        )


def overhead(options: Options) -> Iterator[Case]:
    """Yield the cases of ``ganfast bench overhead``: host time, on a tensor of 256 values."""
    for passes in options.passes or PASSES[:2]:
        for case in cases(
            passes, shapes=(TINY_SHAPE,), against=options.against, device=options.device
        ):
            yield case._replace(bytes_moved=0)


SUITES["ops"] = suite
SUITES["overhead"] = overhead


def _case(
    passes: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    against: tuple[str, ...],
    device: str,
) -> Case:
    if len(shape) not in (2, 4):
        raise ValueError(f"shapes are NxC or NxCxHxW, got {shape}")
    torch.manual_seed(0)
    x, dy = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    if channels_last and len(shape) == 4:
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    x.requires_grad_()
    layer_class, torch_class = (
        (BatchNorm1d, nn.BatchNorm1d) if len(shape) == 2 else (BatchNorm2d, nn.BatchNorm2d)
    )
    ours = layer_class(shape[1], activation="leaky_relu", negative_slope=0.2, device=device)
    pair = nn.Sequential(torch_class(shape[1], device=device), nn.LeakyReLU(0.2))
    models: dict[str, Any] = {"ganfast": ours}
    if "eager" in against:
        models["eager"] = pair
    if "compile" in against:
        torch._dynamo.reset()  # after eight shapes it would run the ninth uncompiled
        models["compile"] = torch.compile(copy.deepcopy(pair), dynamic=False)
    providers = {name: _provider(passes, model, x, dy) for name, model in models.items()}
    results = {name: provider() for name, provider in providers.items()}
    check_results(results, torch.finfo(dtype).eps ** 0.5)
    providers["clone"] = x.detach().clone
    layout = " channels-last" if channels_last else ""
    name = f"{tuple(shape)} {str(dtype).removeprefix('torch.')}{layout}"
    size_bytes = math.prod(shape) * dtype.itemsize
    moved = TENSORS_MOVED[passes] * size_bytes
    return Case(name, passes, providers, bytes_moved=moved, copy_bytes=2 * size_bytes)


def _provider(passes: str, model: Any, x: Tensor, dy: Tensor) -> Callable[[], Any]:
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
