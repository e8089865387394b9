"""The rule of ganfast.verify.exactness as assertions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganfast.verify.bounds import layer_bounds
from ganfast.verify.exactness import judge, norm_of, run, twin, worst_error

__all__ = ["assert_within", "check_layer", "norm_of", "run", "twin", "worst_error"]


def assert_within(
    bound: Tensor | float, ours: Tensor, torchs: Tensor, exact: Tensor, what: str
) -> float:
    """Hold a result to the rule and return its share of the bound; see ``judge``."""
    assert ours.shape == exact.shape, what
    assert ours.dtype == torchs.dtype, f"{what}: {ours.dtype}, torch has {torchs.dtype}"
    verdict = judge(what, ours, torchs, exact.double(), bound)
    assert verdict.passed, verdict.describe()
    return verdict.share


def check_layer(
    layer: nn.Module, x: Tensor, dy: Tensor, *, rounds: int = 1, same_layout: bool = True
) -> dict[str, float]:
    """Hold y, gradients and buffers of a fused layer to the rule; return shares of the bounds.

    Every round begins with the same state in the layer and its twins. ``same_layout`` runs torch's
    pair on tensors laid out as x and dy are.
    """
    # The exact values come from plain contiguous tensors: with other strides torch's own CPU kernel
    # is at times wrong, in float64 too (seen with torch 2.15 on channels-last images of height 1).
    plain_x, plain_dy = (t.clone(memory_format=torch.contiguous_format) for t in (x, dy))
    torch_x, torch_dy = (x, dy) if same_layout else (plain_x, plain_dy)
    splits = getattr(layer, "splits", 1)
    shares: dict[str, float] = {}
    for _ in range(rounds):
        layer.zero_grad(set_to_none=True)
        pair, exact_pair = twin(layer), twin(layer, torch.float64)
        bounds = layer_bounds(layer, plain_x, plain_dy)
        ours = run(layer, x, dy)
        torchs = run(pair, torch_x, torch_dy, splits=splits)
        exact = run(exact_pair, plain_x.double(), plain_dy.double(), splits=splits)
        assert ours.keys() == torchs.keys()
        for name, value in ours.items():
            if name == "num_batches_tracked":
                assert value == torchs[name]
            else:
                share = assert_within(bounds[name], value, torchs[name], exact[name], name)
                shares[name] = max(share, shares.get(name, 0.0))
    return shares
