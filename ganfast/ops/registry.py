"""How an op enters torch's dispatcher: one schema, one eager kernel, one fake, Triton's kernel."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

NAMESPACE = "ganfast"

_definitions = Library(NAMESPACE, "FRAGMENT")

eager_kernels: dict[str, Callable[..., Any]] = {}
"""The eager kernel of every op by its name, for ``backend.use("eager")`` to put in front."""

triton_kernels: dict[str, Callable[..., Any]] = {}
"""Likewise Triton's kernels, of the ops that have one."""

_checked: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {}
"""What puts an op's checks in front of a kernel of it."""

filled_by_triton: set[str] = set()
"""The ops whose CUDA kernel is Triton's, because the extension brings none."""


def define(
    schema: str,
    *,
    eager: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[[SimpleNamespace], None],
    triton: str | None = None,
) -> Callable[..., Any]:
    """Define the op ``ganfast::<schema>`` and return its overload, ready to call.

    The eager kernel is registered at CompositeExplicitAutograd, where it answers on every device
    and dtype until a faster kernel takes that device's own key. ``fake`` gives shapes, strides
    and dtypes without data, as torch.compile and torch.export need. ``check`` is given the op's
    arguments by their names before any Python kernel is, once they are known to be on one device,
    and raises if they do not fit each other. ``triton`` names a function as "module:function"; the
    module, and Triton with it, is imported when it is first called.
    """
    name = schema[: schema.index("(")]
    _definitions.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    names = [argument.name for argument in overload._schema.arguments]  # type: ignore[attr-defined]
    _checked[name] = functools.partial(_behind_checks, names, check)
    eager_kernels[name] = _checked[name](eager)
    _definitions.impl(name, eager_kernels[name], "CompositeExplicitAutograd")
    # A tensor on `meta` beside others brings the call here; sizes are the kernel's to check.
    on_one_device = _behind_checks(names, lambda arguments: None, fake)
    torch.library.register_fake(f"{NAMESPACE}::{name}", on_one_device, lib=_definitions)
    if triton is not None:
        triton_kernels[name] = _checked[name](_on_first_call(triton))
    return overload


def _behind_checks(
    names: list[str], check: Callable[[SimpleNamespace], None], kernel: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def checked(*arguments: Any) -> Any:
        named = dict(zip(names, arguments, strict=True))
        devices = {n: t.device for n, t in named.items() if isinstance(t, Tensor)}
        if len(set(devices.values())) > 1:
            found = ", ".join(f"{name} on {device}" for name, device in devices.items())
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {found}")
        check(SimpleNamespace(**named))
        return kernel(*arguments)

    return checked


def fill_with_triton() -> None:
    """Register Triton's kernels at the CUDA key of the ops that have none there."""
    for name, kernel in triton_kernels.items():
        if not has_kernel(name, "CUDA"):
            _definitions.impl(name, kernel, "CUDA")
            filled_by_triton.add(name)


def has_kernel(name: str, key: str) -> bool:
    """Say whether an op has a kernel at a dispatch key of its own."""
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)
    return found


def _on_first_call(where: str) -> Callable[..., Any]:
    module, _, function = where.partition(":")

    @functools.cache
    def imported() -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found

    return lambda *arguments: imported()(*arguments)


def register_autograd(name: str, kernel: Callable[..., Any]) -> None:
    """Register the Python autograd form of an op; the extension brings its own, cheaper one."""
    _definitions.impl(name, kernel, "Autograd")


def differentiate(name: str, *, by: Callable[..., Any]) -> None:
    """Register an autograd form of an op that runs ``by`` if a gradient is wanted.

    ``by`` consists of torch's own differentiable operations; it serves the derivatives that are too
    rare for a kernel.
    """
    formula = _checked[name](by)
    op: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default

    def kernel(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return formula(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    register_autograd(name, kernel)
