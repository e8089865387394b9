"""Train a model and its unfused twin side by side in float64, and hold them together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["assert_equal_training", "draw"]

TOLERANCE = {"rtol": 1e-11, "atol": 1e-10}
"""The bias of a convolution before a norm has a gradient of rounding alone."""


def draw(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model in float64 whose norms have drawn weights, some of them negative."""
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def assert_equal_training(
    model: nn.Module,
    twin: nn.Module,
    shape: tuple[int, ...],
    call: Callable[..., torch.Tensor] | None = None,
    steps: int = 3,
) -> None:
    """Compare outputs, gradients and state over steps of training, then evaluation.

    ``call`` computes with ``model`` where that is not ``model`` itself, but compiled.
    """
    calls = (model if call is None else call, twin)
    optimizers = [torch.optim.SGD(m.parameters(), 1e-2) for m in (model, twin)]
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        results = []
        for compute, module, optimizer in zip(calls, (model, twin), optimizers, strict=True):
            given = x.clone().requires_grad_()
            optimizer.zero_grad()
            torch.manual_seed(step)  # for dropout
            y = compute(given)
            (y.sin() * torch.arange(1.0, y.numel() + 1).view_as(y) / y.numel()).sum().backward()
            gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
            results.append((y.detach(), given.grad, gradients))
            optimizer.step()
        torch.testing.assert_close(*results, **TOLERANCE)
        torch.testing.assert_close(model.state_dict(), twin.state_dict(), **TOLERANCE)
    model.eval(), twin.eval()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(calls[0](x), twin(x), **TOLERANCE)
    twin.load_state_dict(model.state_dict())
    model.load_state_dict(twin.state_dict())
