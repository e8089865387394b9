"""Shapes and tensors that hypothesis draws, and how a result on them is held to the rule.

A tensor ends where its memory ends, and begins where it begins unless it is drawn to lie askew:
under AddressSanitizer (``make sanitize``) a kernel that reads one element too many is reported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import DEVICES
from oracle import assert_within
from torch import Tensor
from torch._prims_common import suggest_memory_format

import ganfast
from ganfast.verify.exactness import ROUNDINGS

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

EXAMPLES = int(os.environ.get("GANFAST_FUZZ_EXAMPLES", "25"))
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MOST_ELEMENTS = 150_000  # past the sizes at which the native kernels share work out to threads

# Few values, tails of every kind, and the neighbours of powers of two, where vectors, runs of them
# and tasks begin and end.
POWERS = [2**k + d for k in range(3, 16) for d in (-1, 0, 1)]
SIZES = st.one_of(
    st.sampled_from([0, 1, 1, 1, 2, 3, 4, 5]), st.integers(2, 70), st.sampled_from(POWERS)
)


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test of (backend, draw) on every device's backends with many draws."""

    def drawing(backend: str, device: str, data: Any) -> None:
        torch.manual_seed(data.draw(st.integers(0, 2**31), label="seed"))
        with torch.device(device):
            test(backend, data.draw)

    drawing.__name__, drawing.__doc__ = test.__name__, test.__doc__
    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        report_multiple_bugs=False,
    )
    property_ = settings(hypothesis.given(data=st.data())(drawing))
    where = [(b, device) for device in DEVICES for b in ganfast.backend.available(device)]
    return pytest.mark.parametrize(("backend", "device"), where)(property_)


def draw_shape(draw: Any, least_dims: int, most_dims: int) -> list[int]:
    """Draw a shape: usually of some thousand elements at most, seldom of many."""
    left = draw(st.sampled_from([4096] * 6 + [MOST_ELEMENTS]))
    shape = []
    for _ in range(draw(st.integers(least_dims, most_dims))):
        shape.append(min(draw(SIZES), left))
        left //= max(1, shape[-1])
    return draw(st.permutations(shape))


def draw_tensor(draw: Any, values: Tensor, dtype: torch.dtype, *, expand: bool = False) -> Tensor:
    """Lay out values in memory of exactly their size, in drawn order, steps and alignment.

    ``expand`` also draws dimensions of stride 0, along which the first values are repeated.
    """
    shape, dims = list(values.shape), values.dim()
    order, steps = list(range(dims)), [1] * dims
    layout = draw(st.sampled_from(["contiguous", "channels last", "any"]))
    if layout == "channels last":
        order = [0, *order[2:], 1][:dims] if dims > 1 else order
    elif layout == "any":
        order = draw(st.permutations(order))
        steps = [draw(st.sampled_from([1, 1, 2, *([0] if expand else [])])) for _ in shape]
    strides, room = [0] * dims, 1
    for d in reversed(order):
        strides[d] = room * steps[d]
        room *= max(1, shape[d] * steps[d])
    offset = draw(st.sampled_from([0, 0, 1, 3]))
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = torch.zeros(offset + (last + 1 if values.numel() else 0), dtype=dtype)
    tensor = memory.as_strided(shape, strides, offset)
    first = tuple(slice(0, None if step else 1) for step in steps)
    tensor[first].copy_(values[first])
    return tensor


def check(
    backend: str,
    op: Callable[..., Any],
    eager: Callable[..., Any],
    arguments: Sequence[Any],
    bounds: Sequence[Tensor | float | None],
    written: Sequence[int] = (),
    summed: int = 1,
) -> list[Tensor]:
    """Hold an op on drawn arguments to the rule; return its results.

    The exact results are those of the eager form on the same arguments, widened to float64 and
    contiguous; the eager form at their own dtypes stands for torch. Arguments that are ``written``
    count as results behind those that are returned. A result whose bound is None means nothing.
    ``summed`` is the number of values in a sum: torch, and so the eager form, adds them one after
    another where shapes and strides are unusual, a random walk as in ``exactness.rounding``.
    """
    torchs = _run(eager, [_plain(a, wide=False) for a in arguments], written)
    exact = _run(eager, [_plain(a, wide=True) for a in arguments], written)
    with ganfast.backend.use(backend):
        ours = _run(op, arguments, written)
    for i, (value, bound) in enumerate(zip(ours, bounds, strict=True)):
        if bound is None:
            continue
        if not value.is_floating_point():  # a counter
            assert torch.equal(value, torchs[i])
        elif value.numel() or exact[i].numel():
            if backend == "eager":
                bound = bound * (1 + math.sqrt(summed) / 2 / ROUNDINGS)
            assert_within(bound, value, torchs[i], exact[i], f"{op}, result {i}")
    return ours


def assert_laid_out_like(x: Tensor, *results: Tensor) -> None:
    """Require x's memory format of results of x's shape."""
    for result in results:
        assert result.is_contiguous(memory_format=suggest_memory_format(x))


def _run(
    function: Callable[..., Any], arguments: Sequence[Any], written: Sequence[int]
) -> list[Tensor]:
    kept = [a for i, a in enumerate(arguments) if isinstance(a, Tensor) and i not in written]
    memory = [torch.empty(0, dtype=torch.uint8).set_(a.untyped_storage()) for a in kept]
    before = [m.clone() for m in memory]
    results = function(*arguments)
    assert all(map(torch.equal, memory, before)), "an input was changed"
    results = [results] if isinstance(results, Tensor) else list(results)
    return results + [arguments[i] for i in written if arguments[i] is not None]


def _plain(argument: Any, *, wide: bool) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    plain = argument.clone(memory_format=torch.contiguous_format)
    return plain.double() if wide and plain.is_floating_point() else plain
