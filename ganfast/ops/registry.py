"""How an op enters torch's dispatcher: one schema, one eager kernel, one fake, Triton's kernel."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, infer_schema

NAMESPACE = "ganfast"

_definitions = Library(NAMESPACE, "FRAGMENT")

eager_kernels: dict[str, Callable[..., Any]] = {}
"""The eager kernel of every op by name; ``backend.use("eager")`` gives it precedence."""

triton_kernels: dict[str, Callable[..., Any]] = {}
"""The Triton kernel of every op that has one, by name."""

filled_by_triton: set[str] = set()
"""The ops whose CUDA kernel is Triton's, because the extension has none."""


def define(
    name: str,
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    results: Sequence[str] = (),
    mutates: Sequence[str] = (),
    triton: str | None = None,
) -> Callable[..., Any]:
    """Define the op ``ganfast::name`` by its eager kernel and return its overload, ready to call.

    The eager kernel is registered at CompositeExplicitAutograd, which serves every device and
    dtype that has no faster kernel at its own key.

    Args:
        name: of the op.
        reference: the eager kernel, whose signature is the op's.
        fake: returns results with shapes, strides and dtypes but without data, as torch.compile and
            torch.export need them.
        results: names of the results, if there are several; all of them tensors.
        mutates: the arguments that the op writes to.
        triton: a function as "module:function"; the module, and Triton with it, is imported when
            the function is first called.
    """
    schema = infer_schema(reference, op_name=name, mutates_args=mutates)
    if results:
        returned = ", ".join(f"Tensor {result}" for result in results)
        schema = f"{schema.partition(' -> ')[0]} -> ({returned})"
    _definitions.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _definitions.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_definitions)
    eager_kernels[name] = reference
    if triton is not None:
        triton_kernels[name] = _on_first_call(triton)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def fill_with_triton() -> None:
    """Register Triton's kernels at the CUDA key of the ops that have no kernel there."""
    for name, kernel in triton_kernels.items():
        if not has_kernel(name, "CUDA"):
            _definitions.impl(name, kernel, "CUDA")
            filled_by_triton.add(name)


def has_kernel(name: str, key: str) -> bool:
    """Return whether an op has a kernel registered at this very dispatch key."""
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)
    return found


def _on_first_call(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")

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
    """Return an autograd form of ``otherwise`` that runs ``formula`` if a gradient is needed.

    ``formula`` consists of torch's own differentiable operations: for derivatives that are too rare
    for a kernel.
    """

    def kernel(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return formula(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return otherwise(*arguments)

    return kernel
