"""How an op enters torch's dispatcher: one schema, one eager kernel, one fake, Triton's kernel."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
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

_checked: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {}
"""Puts an op's checks in front of a kernel, by the op's name."""

filled_by_triton: set[str] = set()
"""The ops whose CUDA kernel is Triton's, because the extension has none."""


def define(
    name: str,
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    check: Callable[[SimpleNamespace], None],
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
        check: raises if the op's arguments, given by their names, do not fit each other; called
            before any Python kernel, once all tensors are known to be on one device.
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
    names = list(inspect.signature(reference).parameters)
    _checked[name] = functools.partial(_behind_checks, names, check)
    eager_kernels[name] = _checked[name](reference)
    _definitions.impl(name, eager_kernels[name], "CompositeExplicitAutograd")
    # A tensor on `meta` beside others brings the call here; sizes are the kernel's to check.
    on_one_device = _behind_checks(names, lambda arguments: None, fake)
    torch.library.register_fake(f"{NAMESPACE}::{name}", on_one_device, lib=_definitions)
    if triton is not None:
        triton_kernels[name] = _checked[name](_on_first_call(triton))
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
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


def differentiate(name: str, *, by: Callable[..., Any]) -> None:
    """Register an autograd form of an op that runs ``by`` if a gradient is needed.

    ``by`` consists of torch's own differentiable operations: for derivatives that are too rare for
    a kernel.
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
