"""How an op enters torch's dispatcher: one schema, one eager kernel, one fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

NAMESPACE = "ganfast"

_definitions = Library(NAMESPACE, "FRAGMENT")

eager_kernels: dict[str, Callable[..., Any]] = {}
"""The eager kernel of every op by its name, for ``backend.use("eager")`` to put in front."""


def define(
    schema: str, *, eager: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define the op ``ganfast::<schema>`` and return its overload, ready to call.

    The eager kernel is registered at CompositeExplicitAutograd, where it answers on every device
    and dtype until a faster kernel takes that device's own key. ``fake`` gives shapes, strides
    and dtypes without data, as torch.compile and torch.export need.
    """
    name = schema[: schema.index("(")]
    _definitions.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _definitions.impl(name, eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_definitions)
    eager_kernels[name] = eager
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


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
