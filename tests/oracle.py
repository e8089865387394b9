"""The rule of ganfast.bench.exactness as assertions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganfast.bench.exactness import judge, norm_of, run, twin, worst_error

__all__ = ["assert_as_exact_as_torch", "check_layer", "norm_of", "run", "twin", "worst_error"]


def assert_as_exact_as_torch(
    ours: Tensor, torchs: Tensor, exact: Tensor, what: str, *, operands: float = 0.0
) -> None:
    """Hold a result to the rule; see ``judge`` for the arguments."""
    assert ours.shape == exact.shape, what
    assert ours.dtype == torchs.dtype, f"{what}: {ours.dtype}, torch has {torchs.dtype}"
    verdict = judge(what, ours, torchs, exact, operands=operands)
    assert verdict.unusual, f"{what}: other values that are not finite than torch's"
    assert verdict.passed, f"{what}: error {verdict.error:.3e}, allowed {verdict.allowed:.3e}"


def check_layer(
    layer: nn.Module,
    x: Tensor,
    dy: Tensor,
    *,
    rounds: int = 1,
    operands: float = 0.0,
    same_layout: bool = True,
) -> None:
    """Compare a fused layer with torch's pair: y, gradients and buffers, by the rule.

    ``same_layout`` takes torch's own error from tensors laid out as x and dy are.
    """
    pair, exact_pair = twin(layer), twin(layer, torch.float64)
    # The exact values come from plain contiguous tensors: with other strides torch's own CPU kernel
    # is at times wrong, in float64 too (seen with torch 2.15 on channels-last images of height 1).
    plain_x, plain_dy = (t.clone(memory_format=torch.contiguous_format) for t in (x, dy))
    torch_x, torch_dy = (x, dy) if same_layout else (plain_x, plain_dy)
    for _ in range(rounds):
        for module in (layer, pair, exact_pair):
            module.zero_grad(set_to_none=True)
        ours = run(layer, x, dy)
        torchs = run(pair, torch_x, torch_dy, splits=layer.splits)
        exact = run(exact_pair, plain_x.double(), plain_dy.double(), splits=layer.splits)
    assert ours.keys() == torchs.keys()
    for name, value in ours.items():
        if name == "num_batches_tracked":
            assert value == torchs[name]
        else:
            assert_as_exact_as_torch(value, torchs[name], exact[name], name, operands=operands)
