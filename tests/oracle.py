"""torch's own layers as the reference, and the rule that every kernel is held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def worst_error(value: Tensor, exact: Tensor) -> float:
    """Return the largest absolute error where ``exact`` is finite; 0 for an empty tensor."""
    finite = exact.isfinite()
    difference = (value.double() - exact)[finite].abs()
    return difference.max().item() if difference.numel() else 0.0


def assert_as_exact_as_torch(
    ours: Tensor, torchs: Tensor, exact: Tensor, what: str, *, operands: float = 0.0
) -> None:
    """Hold our error to twice torch's own at the same dtype, plus one rounding.

    ``exact`` is torch's result in float64 from the same inputs; for float64 itself, where it is no
    better than ours, some roundings are allowed instead. Values that are not finite must be the
    same as torch's. ``operands`` allows four roundings of numbers of that size: where there are
    only a handful of values, torch's own error is often nothing by chance.
    """
    assert ours.shape == exact.shape, what
    assert ours.dtype == torchs.dtype, f"{what}: {ours.dtype}, torch has {torchs.dtype}"
    unusual = ~torchs.isfinite()
    torch.testing.assert_close(ours[unusual], torchs[unusual], equal_nan=True, msg=what)
    finite = exact[exact.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    roundings = 64 if ours.dtype == torch.float64 else 1
    allowed = 2 * worst_error(torchs, exact) + roundings * torch.finfo(ours.dtype).eps * largest
    allowed += 4 * torch.finfo(ours.dtype).eps * operands
    error = worst_error(ours, exact)
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def twin(layer: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Build torch's pair for one fused layer, with copies of its parameters and buffers."""
    torch_class = next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn"))
    norm = torch_class(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    norm.load_state_dict(layer.state_dict())
    act: nn.Module
    if layer.activation == "relu":
        act = nn.ReLU()
    elif layer.activation == "leaky_relu":
        act = nn.LeakyReLU(layer.negative_slope)
    else:
        act = nn.Identity()
    pair = nn.Sequential(norm, act) if layer.order == "norm_act" else nn.Sequential(act, norm)
    own = [t.dtype for t in layer.state_dict().values() if t.is_floating_point()]
    pair = pair.to(dtype or (own[0] if own else torch.float32))  # the counter stays an integer
    pair = pair.to(next(iter(layer.state_dict().values())).device if own else "cpu")
    return pair.train(layer.training)


def norm_of(pair: nn.Module) -> Any:
    """Return the BatchNorm of a pair that ``twin`` made."""
    return next(m for m in pair if isinstance(m, nn.modules.batchnorm._BatchNorm))


def run(module: nn.Module, x: Tensor, dy: Tensor, *, splits: int = 1) -> dict[str, Tensor | None]:
    """Return y, every gradient and every buffer after one forward and backward.

    ``splits`` calls the module on that many chunks in turn.
    """
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = torch.cat([module(chunk) for chunk in x.chunk(splits)]) if splits > 1 else module(x)
    y.backward(dy.to(y.dtype))
    norm = module if not isinstance(module, nn.Sequential) else norm_of(module)
    result = {"y": y.detach(), "dx": x.grad}
    for name, parameter in norm.named_parameters():
        result[f"d{name}"] = parameter.grad
    result.update(norm.named_buffers())
    return result


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
