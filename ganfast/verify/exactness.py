"""The rule that every kernel is held to, and torch's own layers as its reference.

With ``exact`` torch's result in float64, every element of ours must satisfy::

    |ours - exact| <= bound + eps_result * |exact| + smallest_subnormal

``eps_result`` is that of the result's dtype: one rounding. ``bound`` is what rounding inside the
arithmetic can do, derived from the operands alone: ``ROUNDINGS * eps * size``, where ``size`` is
the sum of the absolute values of the terms that the formula adds up. ``bounds.py`` and
``loss_bounds.py`` derive the sizes. torch's result at the same dtype allows nothing, so what is
allowed is the same on every processor and for every version of torch. Values that are not finite
must be torch's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ganfast.fusion.unfused import torch_pair

__all__ = [
    "ROUNDINGS",
    "Verdict",
    "judge",
    "norm_of",
    "rounding",
    "run",
    "twin",
    "worst_error",
]  # fmt: skip

ROUNDINGS = 4
"""Roundings of a term on its way into a result, in units of eps (twice the largest error of one).

The longest chain is that of z: the rounding of u - mean, of the sum of squares behind rstd (whose
relative error the square root halves), of var + eps, its inverse square root, the product with
weight, and the fused multiply-add. Each is at most eps / 2, a sum in runs of 32 values one or two
eps; together at most 4 eps of the term if all of them point the same way.
"""


def rounding(dtype: torch.dtype, summed: int = 1) -> float:
    """Return the relative error of each term of a formula: ours, and the reference's.

    Ours does not grow with the number of terms: sums have several accumulators. The reference adds
    ``summed`` values one after another in float64: a random walk of that many roundings, each
    uniform within eps / 2 of a partial sum, stays within ``sqrt(summed) / 2`` eps by three standard
    deviations. Unless our arithmetic is in float64 too, that is nothing.

    Args:
        dtype: of the input; arithmetic is in float64 for float64, else in float32.
        summed: number of values in the longest sum.
    """
    arithmetic = torch.promote_types(dtype, torch.float32)
    reference = ROUNDINGS + math.sqrt(summed) / 2
    ours = ROUNDINGS * torch.finfo(arithmetic).eps
    return ours + reference * torch.finfo(torch.float64).eps


class Verdict(NamedTuple):
    """The comparison of one result.

    Attributes:
        what: the result's name.
        error: largest absolute error of ours.
        torch_error: the same of torch's at the same dtype, for information.
        share: the largest share that an element's error takes of what is allowed for it.
        torch_share: the same of torch's, for information.
        unusual: whether values that are not finite are torch's.
    """

    what: str
    error: float
    torch_error: float
    share: float
    torch_share: float
    unusual: bool

    @property
    def passed(self) -> bool:
        """Whether the rule holds."""
        return self.unusual and self.share <= 1

    @property
    def closeness(self) -> float:
        """Return ``share``; infinite if values that are not finite are not torch's."""
        return self.share if self.unusual else math.inf

    def describe(self) -> str:
        """Describe how the rule is broken."""
        if not self.unusual:
            return f"{self.what}: values that are not finite differ from torch's"
        return f"{self.what}: error {self.error:.2e}, {self.share:.3g} times what is allowed"


def worst_error(value: Tensor, exact: Tensor) -> float:
    """Return the largest absolute error of values that are finite; 0 for an empty tensor."""
    finite = exact.isfinite()
    difference = (value.double() - exact)[finite].abs()
    return difference.max().item() if difference.numel() else 0.0


def judge(what: str, ours: Tensor, torchs: Tensor, exact: Tensor, bound: Tensor | float) -> Verdict:
    """Hold a result to the rule.

    Args:
        what: the result's name.
        ours: the result.
        torchs: torch's in the same dtype and shape; determines which values are not finite.
        exact: torch's in float64.
        bound: largest error before the result is rounded to its dtype; broadcast to the result.

    Examples:
        >>> third = torch.ones(1, dtype=torch.float64) / 3
        >>> judge("a third", third.float(), third.float(), third, 0.0).passed
        True
    """
    usual = torchs.isfinite()
    same = torch.equal(ours.isnan(), torchs.isnan()) and torch.equal(
        ours[~usual & ~torchs.isnan()], torchs[~usual & ~torchs.isnan()]
    )
    dtype = torch.finfo(ours.dtype)
    allowed = bound + dtype.eps * exact.abs() + dtype.eps * dtype.smallest_normal
    compared = usual & exact.isfinite()

    def largest_share(value: Tensor) -> float:
        shares = ((value.double() - exact).abs() / allowed)[compared]
        return shares.nan_to_num(math.inf, math.inf).max().item() if shares.numel() else 0.0

    return Verdict(
        what, worst_error(ours, exact), worst_error(torchs, exact),
        largest_share(ours), largest_share(torchs), same,
    )  # fmt: skip


def twin(layer: Any, dtype: torch.dtype | None = None) -> nn.Sequential:
    """Build torch's pair for one fused layer, in its own dtype or another."""
    pair = torch_pair(layer)
    return pair if dtype is None else pair.to(dtype)  # the counter stays an integer


def norm_of(pair: nn.Module) -> Any:
    """Return the normalisation layer of a pair that ``twin`` made."""
    return next(m for m in pair.children() if isinstance(m, nn.modules.batchnorm._NormBase))


def run(module: nn.Module, x: Tensor, dy: Tensor, *, splits: int = 1) -> dict[str, Tensor | None]:
    """Return y, every gradient and every buffer after one forward and backward.

    ``splits`` calls the module on that many chunks in turn.
    """
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = torch.cat([module(chunk) for chunk in x.chunk(splits)]) if splits > 1 else module(x)
    y.backward(dy.to(y.dtype))
    norm = norm_of(module) if isinstance(module, nn.Sequential) else module
    result: dict[str, Tensor | None] = {"y": y.detach(), "dx": x.grad}
    for name, parameter in norm.named_parameters():
        result[f"d{name}"] = parameter.grad
    result.update(norm.named_buffers())
    return result
