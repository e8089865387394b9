"""How an op enters torch's dispatcher: one schema, one eager kernel, one fake, Triton's kernel."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
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

filled_by_triton: set[str] = set()
"""The ops whose CUDA kernel is Triton's, because the extension brings none."""


def define(
    schema: str,
    *,
    eager: Callable[..., Any],
    fake: Callable[..., Any],
    triton: str | None = None,
) -> Callable[..., Any]:
    """Define the op ``ganfast::<schema>`` and return its overload, ready to call.

    The eager kernel is registered at CompositeExplicitAutograd, where it answers on every device
    and dtype until a faster kernel takes that device's own key. ``fake`` gives shapes, strides
    and dtypes without data, as torch.compile and torch.export need. ``triton`` names a function as
    "module:function"; the module, and Triton with it, is imported when it is first called.
    """
    name = schema[: schema.index("(")]
    _definitions.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _definitions.impl(name, eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_definitions)
    eager_kernels[name] = eager
    if triton is not None:
        triton_kernels[name] = _on_first_call(triton)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


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


def differentiable_by(
    formula: Callable[..., Any], *, otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """Return an autograd form of ``otherwise`` that runs ``formula`` where a gradient is wanted.

    ``formula`` consists of torch's own differentiable operations; it serves the derivatives that
    are too rare for a kernel.
    """

    def kernel(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return formula(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return otherwise(*arguments)

    return kernel
