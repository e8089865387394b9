"""Which kernels serve the ops, and how to choose others.

The dispatcher chooses: a backend is a set of kernels registered at a device's key. This module
shows the choice and can give one backend's kernels precedence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.library import Library

from ganfast.ops import extension, registry, triton_launch

__all__ = ["BackendChoice", "available", "describe_extension", "explain", "use"]

NAMES = ("native", "triton", "eager")
"""The names of all backends, fastest first."""

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


def available(device: str | torch.device = "cpu") -> tuple[str, ...]:
    """Return the names of the backends that have kernels for ``device``, fastest first.

    Examples:
        >>> "eager" in available("cpu")
        True
    """
    device_type = torch.device(device).type
    names = ["eager"]
    if not triton_launch.why_not(device_type):
        names.insert(0, "triton")
    if any(_own_kernel(op, device_type) == "native" for op in registry.eager_kernels):
        names.insert(0, "native")
    return tuple(names)


class BackendChoice:
    """A choice made with :func:`use`; used as a context manager, it ends with the block."""

    def __init__(self, name: str, override: Library | None, served: frozenset[tuple[str, str]]):
        self.name = name
        self.served = served
        self._override = override

    def __enter__(self) -> BackendChoice:
        return self

    def __exit__(
        self,
        exception_class: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def undo(self) -> None:
        """Restore the kernels that served the ops before."""
        if self._override is not None:
            self._override._destroy()
            self._override = None
            if self in _choices:
                _choices.remove(self)


_choices: list[BackendChoice] = []


def use(name: str) -> BackendChoice:
    """Serve every op by the kernels of one backend, from now on or in a ``with`` block.

    Args:
        name: "native" (the fastest available, the default), "triton" (on NVIDIA GPUs; on the CPU in
            Triton's interpreter, with TRITON_INTERPRET=1) or "eager" (torch's own operations, on
            every device).

    Raises:
        ValueError: no backend has this name.
        RuntimeError: the backend has no kernels on this machine; the message gives the reason.

    Examples:
        >>> with use("eager"):
        ...     y = ganfast.functional.batch_norm_act(torch.randn(4, 2), None, None, training=True)
    """
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    if name == "native":
        if not extension.is_loaded():
            raise RuntimeError(
                f"backend 'native' is not available: {extension.part('cpu').reason}. "
                f"Build it with: {extension.rebuild_command()}"
            )
        for choice in reversed(_choices.copy()):
            choice.undo()
        return BackendChoice(name, None, frozenset())
    kernels, devices = registry.eager_kernels, list(_DISPATCH_KEYS)
    if name == "triton":
        kernels = registry.triton_kernels
        devices = [device for device in devices if not triton_launch.why_not(device)]
        if not devices:
            raise RuntimeError(
                f"backend 'triton' is not available: {triton_launch.why_not('cuda')}"
            )
    choice = _put_in_front(name, kernels, devices)
    _choices.append(choice)
    return choice


def _put_in_front(
    name: str, kernels: dict[str, Callable[..., Any]], devices: list[str]
) -> BackendChoice:
    override = Library(registry.NAMESPACE, "IMPL")
    with warnings.catch_warnings():  # torch before 2.15 or so warns in spite of allow_override
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for op, kernel in kernels.items():
            for device in devices:
                override.impl(op, kernel, _DISPATCH_KEYS[device], allow_override=True)
    served = frozenset((op, device) for op in kernels for device in devices)
    return BackendChoice(name, override, served)


def explain(device: str | torch.device | None = None) -> str:
    """Describe which kernel serves each op on a device, and why no faster one does.

    Args:
        device: "cpu", "cuda", ...; None for the CPU and the GPU, if there is one.

    Returns:
        Lines of text, one op and device each, then the reasons.

    Examples:
        >>> print(explain("cpu"))  # doctest: +SKIP
        batch_norm_act_train                   cpu   native
    """
    if device is None:
        devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    else:
        devices = [torch.device(device).type]
    lines = []
    for op in registry.eager_kernels:
        lines += [f"{op:39}{name:6}{_serving(op, name)}" for name in devices]
    for name in devices:
        for backend, why_not in (("native", _why_not_native), ("triton", _why_not_triton)):
            if reason := why_not(name):
                lines.append(f"{name}: {backend} kernels are not used: {reason}")
    return "\n".join(lines)


def describe_extension() -> list[str]:
    """Return one line for each part of the C++/CUDA extension: its build, or how to build it."""
    lines = []
    for name, title in (("cpu", "CPU part"), ("cuda", "CUDA part")):
        part = extension.part(name)
        if part.description is not None:
            lines.append(f"{title}: {part.description}")
        else:
            lines.append(f"{title}: missing: {part.reason}")
    if not extension.is_loaded("cpu") or (torch.version.cuda and not extension.is_loaded("cuda")):
        lines.append(f"build what is missing with: {extension.rebuild_command()}")
    if extension.is_loaded("cuda") and torch.cuda.is_available():
        reason = extension.probe_cuda(torch.cuda.current_device())
        lines.append(f"CUDA part on this GPU: {reason or 'its kernels run'}")
    return lines


def _serving(op: str, device: str) -> str:
    for choice in reversed(_choices):
        if (op, device) in choice.served:
            return choice.name
    return _own_kernel(op, device)


def _own_kernel(op: str, device: str) -> str:
    """Return the backend that serves an op by default."""
    if device == "cuda" and op in registry.filled_by_triton:
        return "triton"
    key = _DISPATCH_KEYS.get(device)
    return "native" if key is not None and op in _native_kernels[key] else "eager"


def _why_not_native(device: str) -> str:
    if _choices:
        return f"ganfast.backend.use({_choices[-1].name!r}) is in force"
    if device not in _DISPATCH_KEYS:
        return f"there are none for the device type {device!r}"
    part = extension.part(device)
    if part.reason:
        return f"{part.reason}; build them with: {extension.rebuild_command()}"
    if "native" not in available(device):
        return f"there are none for {device} in this version"
    return ""


def _why_not_triton(device: str) -> str:
    """Return why Triton does not serve a GPU; "" if it does, or if native kernels do."""
    if device != "cuda" or "native" in available(device):
        return ""
    if _choices:
        return "" if _choices[-1].name == "triton" else _why_not_native(device)
    return triton_launch.why_not(device)


_native_kernels = {
    key: {op for op in registry.eager_kernels if registry.has_kernel(op, key)}
    for key in _DISPATCH_KEYS.values()
}
