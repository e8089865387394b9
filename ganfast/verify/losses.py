"""The checks of the losses in ``ganfast verify``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from ganfast import functional
from ganfast.functional.losses import GAN_LOSSES, op_arguments
from ganfast.ops.losses import reference
from ganfast.verify.exactness import Verdict, judge
from ganfast.verify.loss_bounds import (
    cross_entropy_bound,
    cross_entropy_slope_bound,
    gan_loss_bounds,
    gan_slope_bound,
)
from ganfast.verify.runner import CHECKS, Check

Draw = Callable[..., Tensor]

LAYOUTS: dict[str, Callable[[Draw], Tensor]] = {
    "one score": lambda draw: draw(1),
    "batch of 128": lambda draw: draw(128),
    "PatchGAN": lambda draw: draw(7, 1, 30, 30),
    "channels-last": lambda draw: draw(6, 5, 4, 3).contiguous(memory_format=torch.channels_last),
    "sliced": lambda draw: draw(90, 66)[::3, ::2],
}
EXTREMES = {
    False: (0.0, 1.0, 1e-40, 1e-7, 0.5, 1 - 2.0**-10, 1.0),
    True: (0.0, 1e4, -1e4, 100.0, -100.0, 88.0, -88.0, float("inf"), -float("inf"), float("nan")),
}


def binary_cross_entropy_checks(dtype: torch.dtype, device: str) -> Iterator[Check]:
    """Yield the checks of binary_cross_entropy for one dtype."""
    for layout, make in LAYOUTS.items():
        for from_logits in (False, True):
            scores = "logits" if from_logits else "probabilities"
            for reduction in ("none", "mean", "sum"):
                for target in ("tensor", 0.0, 1.0, 0.9):
                    for weighted in (False, True):
                        call = partial(
                            _compare, make, from_logits, target, weighted, reduction, dtype, device
                        )
                        weights = ", weighted" if weighted else ""
                        name = f"{scores}, {reduction}, target {target}{weights}"
                        yield Check(layout, name, call)
    for from_logits, values in EXTREMES.items():
        for target in (0.0, 0.5, 1.0):
            make = partial(_extremes, values)
            call = partial(_compare, make, from_logits, target, False, "none", dtype, device)
            yield Check("extremes", f"target {target}, {values}", call)


def gan_loss_checks(dtype: torch.dtype, device: str) -> Iterator[Check]:
    """Yield the checks of gan_loss for one dtype."""
    for layout, make in LAYOUTS.items():
        for kind in GAN_LOSSES:
            for from_logits in (True, False) if kind == "bce" else (True,):
                scores = "logits" if from_logits else "probabilities"
                call = partial(_compare_discriminator, make, kind, from_logits, dtype, device)
                yield Check(layout, f"{kind} from {scores}, discriminator", call)
                call = partial(_compare_generator, make, kind, from_logits, dtype, device)
                yield Check(layout, f"{kind} from {scores}, generator", call)


CHECKS["binary_cross_entropy"] = binary_cross_entropy_checks
CHECKS["gan_loss"] = gan_loss_checks


def _extremes(values: tuple[float, ...], draw: Draw) -> Tensor:
    return torch.tensor(values)


def _scores(
    make: Callable[[Draw], Tensor], from_logits: bool, seed: int, dtype: torch.dtype, device: str
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator)
        return x if from_logits else x.sigmoid()

    return make(draw).to(device, dtype)


def _compare(
    make: Callable[[Draw], Tensor],
    from_logits: bool,
    target: str | float,
    weighted: bool,
    reduction: str,
    dtype: torch.dtype,
    device: str,
) -> Iterable[Verdict]:
    x = _scores(make, from_logits, 0, dtype, device)
    t: Tensor | float = (
        target if isinstance(target, float) else _scores(make, False, 1, dtype, device)
    )
    weight = _scores(make, False, 2, dtype, device) if weighted else None
    dy = _scores(make, True, 3, dtype, device) if reduction == "none" else x.new_tensor(3.0)
    # Half scores are computed in float32: better than torch, whose smallest denominator is 0 there.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    wide_t = torch.full_like(x, t, dtype=wide) if isinstance(t, float) else t.to(wide)
    # A number is exact, whatever the scores' dtype.
    exact_t = torch.full_like(x, t, dtype=torch.float64) if isinstance(t, float) else t.double()
    name = "binary_cross_entropy" + ("_with_logits" if from_logits else "")
    ours, theirs = getattr(functional, name), getattr(torch_functional, name)
    options = {"reduction": reduction}
    results = [
        _run(partial(function, target=t, weight=_to(weight, to), **options), dy.to(to), x.to(to))
        for function, t, to in (
            (ours, t, dtype),
            (theirs, wide_t, wide),
            (theirs, exact_t, torch.float64),
        )
    ]
    torchs = _rounded(results[1], dtype, 0)
    form: dict[str, Any] = {"from_logits": from_logits, "reduction": reduction}
    bounds = {
        "y": cross_entropy_bound(x, t, weight, **form),
        "dx": cross_entropy_slope_bound(dy, x, t, weight, **form),
    }
    return _judge_all(results[0], torchs, results[2], bounds)


def _compare_discriminator(
    make: Callable[[Draw], Tensor], kind: str, from_logits: bool, dtype: torch.dtype, device: str
) -> Iterable[Verdict]:
    logits = from_logits or kind != "bce"
    real, fake = (_scores(make, logits, seed, dtype, device) for seed in (0, 1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    dy = torch.tensor(3.0, dtype=wide, device=device)
    ours = partial(functional.gan_discriminator_loss, kind=kind, from_logits=from_logits)
    form, *labels = op_arguments("discriminator", kind, from_logits, 1.0, 0.0)

    def script(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
        return reference.discriminator_loss(real, fake, form, *labels)

    return _judge_all(
        _run(ours, dy, real, fake),
        _rounded(_run(script, dy, real.to(wide), fake.to(wide)), dtype, 3),
        _run(script, dy.double(), real.double(), fake.double()),
        _gan_bounds(form, dy, *zip((real, fake), labels, strict=True)),
    )


def _compare_generator(
    make: Callable[[Draw], Tensor], kind: str, from_logits: bool, dtype: torch.dtype, device: str
) -> Iterable[Verdict]:
    fake = _scores(make, from_logits or kind != "bce", 1, dtype, device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    dy = torch.tensor(3.0, dtype=wide, device=device)
    ours = partial(functional.gan_generator_loss, kind=kind, from_logits=from_logits)
    form, label, _ = op_arguments("generator", kind, from_logits, 1.0, 0.0)
    script = partial(reference.mean_loss, form=form, label=label)
    return _judge_all(
        _run(ours, dy, fake),
        _rounded(_run(script, dy, fake.to(wide)), dtype, 1),
        _run(script, dy.double(), fake.double()),
        _gan_bounds(form, dy, (fake, label)),
    )


def _gan_bounds(form: str, dy: Tensor, *labelled: tuple[Tensor, float]) -> dict[str, Tensor]:
    """Bound the results of ``_run`` by name: for scores of real and generated images, or of one."""
    loss, *means = gan_loss_bounds(form, *labelled)
    gradients = [gan_slope_bound(form, dy, x, label) for x, label in labelled]
    if len(labelled) == 1:
        return {"loss": loss, "dfake": gradients[0]}
    names = ("loss", "real score", "fake score", "dreal", "dfake")
    return dict(zip(names, (loss, *means, *gradients), strict=True))


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _run(call: Callable[..., Any], dy: Tensor, *scores: Tensor) -> tuple[Tensor, ...]:
    """Return the results and the gradients of the first of them."""
    leaves = [x.detach().clone().requires_grad_() for x in scores]
    results = call(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad(results[0], leaves, dy.to(results[0].dtype))
    return *(result.detach() for result in results), *gradients


def _rounded(results: tuple[Tensor, ...], dtype: torch.dtype, scalars: int) -> tuple[Tensor, ...]:
    """Round gradients to the scores' dtype; losses and scores stay in float32."""
    return *results[:scalars], *(gradient.to(dtype) for gradient in results[scalars:])


def _judge_all(
    ours: tuple[Tensor, ...],
    torchs: tuple[Tensor, ...],
    exact: tuple[Tensor, ...],
    bounds: dict[str, Tensor],
) -> list[Verdict]:
    rows = zip(bounds.items(), ours, torchs, exact, strict=True)
    return [judge(name, a, b, reference, bound) for (name, bound), a, b, reference in rows]
