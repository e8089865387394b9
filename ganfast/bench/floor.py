"""The convolutions that a training step cannot do without: the limit of its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["FLOORS", "floor"]

FLOORS = {"floor": torch.contiguous_format, "floor-channels-last": torch.channels_last}
"""Names of these providers, and the memory format of their tensors."""

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def floor(
    step: Callable[[], Any],
    memory_format: torch.memory_format,
    device: torch.device | str = "cpu",
) -> Callable[[], None]:
    """Return a call that repeats a step's convolutions, and nothing else.

    Each forward pass, data gradient and weight gradient that the step computes is computed once,
    from tensors of the same shapes and dtypes; an output is dropped before the next call.

    Args:
        step: takes one step; here one that asks for no gradient it does not use.
        memory_format: of all four-dimensional tensors.
        device: where they lie.

    Examples:
        >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> alone = floor(lambda: torch.conv2d(x, weight), torch.channels_last)
        >>> alone()
    """
    with _Recorder() as recorder:
        step()
    calls = [
        partial(
            func, *(_like(argument, memory_format, torch.device(device)) for argument in arguments)
        )
        for func, arguments in recorder.found
    ]

    def convolutions() -> None:
        for call in calls:
            call()

    return convolutions


class _Recorder(TorchDispatchMode):
    """Note each convolution with its arguments, tensors without their values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS:
            self.found.append((func, [_described(a) for a in args]))
        return func(*args, **(kwargs or {}))


def _described(argument: Any) -> Any:
    return argument.detach().to("meta") if isinstance(argument, Tensor) else argument


def _like(argument: Any, memory_format: torch.memory_format, device: torch.device) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    x = torch.randn(argument.shape, device=device).to(argument.dtype)
    return x.contiguous(memory_format=memory_format) if x.dim() == 4 else x
