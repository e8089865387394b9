"""Values and gradients of both binary cross-entropies against torch's own functions."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_within
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from ganfast import functional
from ganfast.verify.loss_bounds import (
    cross_entropy_bound,
    cross_entropy_second_bounds,
    cross_entropy_slope_bound,
    cross_entropy_target_bound,
)

FORMS = {
    "probabilities": (functional.binary_cross_entropy, F.binary_cross_entropy),
    "logits": (functional.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits),
}
REDUCTIONS = ["none", "mean", "sum"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# A single value, whole vectors, tails, scores of a patch discriminator, more than one thread.
SHAPES = [(), (1,), (17,), (33,), (64,), (128,), (3, 5), (7, 1, 30, 30), (1000,), (4097,)]
WEIGHTS = [(), (1,), (5,), (6, 5), (3, 1, 1), (1, 3, 1, 1), (4, 1, 1, 1), (4, 3, 6, 5)]
ENDS = [
    0.0, -0.0, 1.0, 1e-45, 1e-42, 1e-38, 2.0**-126, 1e-30, 1e-13, 1e-12, 2.0**-24, 1 - 2.0**-24,
]  # fmt: skip

by_form = pytest.mark.parametrize("form", FORMS)
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def make(form, shape, device="cpu", dtype=torch.float32):
    """An input and a target with values all over their ranges."""
    x = torch.rand(shape) * 0.98 + 0.01 if form == "probabilities" else torch.randn(shape) * 3
    return x.to(device, dtype), torch.rand(shape).to(device, dtype)


def run(function, x, target, dy, **options):
    """Return the loss and the gradients of x and, where it wants one, of a target tensor."""
    inputs = {"x": x.detach().requires_grad_()}
    if isinstance(target, torch.Tensor):
        wanted = target.requires_grad
        target = target.detach().requires_grad_(wanted)
        inputs |= {"target": target} if wanted else {}
    y = function(inputs["x"], target, **options)
    gradients = torch.autograd.grad(y, inputs.values(), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{n}": g for n, g in zip(inputs, gradients, strict=True)}


def bounds(form, x, target, dy, *, weight=None, pos_weight=None, reduction="mean"):
    """Return the bound of every result of ``run``."""
    options = {"from_logits": form == "logits", "reduction": reduction}
    weights = (weight, pos_weight)
    return {
        "y": cross_entropy_bound(x, target, *weights, **options),
        "dx": cross_entropy_slope_bound(dy, x, target, *weights, **options),
        "dtarget": cross_entropy_target_bound(dy, x, *weights, **options),
    }


def check(form, x, target, **options):
    """Compare the loss and its gradients with torch's, by the rule."""
    ours_of, torchs_of = FORMS[form]
    is_number = not isinstance(target, torch.Tensor)
    dy = torch.randn(x.shape if options.get("reduction") == "none" else ()).to(x)
    dy = dy if is_number else dy.to(target.dtype).to(x)  # the loss has the target's dtype
    torchs_target = torch.full_like(x, target) if is_number else target
    exact_target = torch.full_like(x, target, dtype=torch.float64) if is_number else target.double()
    wide = {n: o.double() if isinstance(o, torch.Tensor) else o for n, o in options.items()}
    ours = run(ours_of, x, target, dy, **options)
    torchs = run(torchs_of, x, torchs_target, dy, **options)
    exact = run(torchs_of, x.double(), exact_target, dy.double(), **wide)
    assert ours.keys() == torchs.keys()
    bound = bounds(form, x, target, dy, **options)
    for name, value in ours.items():
        assert_within(bound[name], value, torchs[name], exact[name], name)
    return ours


@by_form
@by_reduction
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_torch(backend, device, form, reduction, dtype, shape):
    x, target = make(form, shape, device, dtype)
    check(form, x, target, reduction=reduction)


@by_form
@by_reduction
@pytest.mark.parametrize("target", [0.9, "tensor"])
def test_odd_size_of_several_threads(several_threads, backend, device, form, reduction, target):
    x, tensor = make(form, (70001,), device)
    check(form, x, tensor if target == "tensor" else target, reduction=reduction)


@by_form
@by_reduction
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", [0, 1, 0.0, 1.0, 0.9, 0.1, True, False], ids=repr)
def test_a_number_stands_for_a_filled_tensor(backend, device, form, reduction, dtype, target):
    x, _ = make(form, (9, 57), device, dtype)
    weight = torch.rand(57, device=device).to(dtype)
    check(form, x, target, reduction=reduction)
    check(form, x, target, reduction=reduction, weight=weight)


@by_form
@by_reduction
@pytest.mark.parametrize("shape", WEIGHTS, ids=str)
def test_weight_is_broadcast(backend, device, form, reduction, shape):
    x, target = make(form, (4, 3, 6, 5), device)
    weight = torch.rand(shape).to(device) * 3
    check(form, x, target, reduction=reduction, weight=weight)


@by_reduction
@pytest.mark.parametrize("number", [False, True])
@pytest.mark.parametrize("shape", WEIGHTS, ids=str)
def test_pos_weight_is_broadcast(backend, device, reduction, number, shape):
    x, target = make("logits", (4, 3, 6, 5), device)
    target = 0.9 if number else target
    pos_weight, weight = torch.rand(shape).to(device) * 3, torch.rand(3, 1, 1).to(device)
    check("logits", x, target, reduction=reduction, pos_weight=pos_weight)
    check("logits", x, target, reduction=reduction, pos_weight=pos_weight, weight=weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_other_dtypes(backend, device, dtype):
    x, target = make("logits", (7, 43), device, dtype)
    weight, pos_weight = torch.rand(43, device=device), torch.rand(7, 1, device=device)
    check("logits", x, target, reduction="none", weight=weight, pos_weight=pos_weight)


@by_form
@by_reduction
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_any_layout(backend, device, form, reduction, layout):
    x, target = make(form, (6, 3, 14, 18), device)
    if layout == "channels_last":
        x, target = (t.to(memory_format=torch.channels_last) for t in (x, target))
    elif layout == "sliced":
        x, target = x[1:, :, ::2, 1:], target[:5, :, 3:10, 1:]
    elif layout == "transposed":
        x, target = x.transpose(1, 3), target.transpose(1, 3)
    else:
        x, target = x[:1].expand(6, -1, -1, -1), target[:, :1].expand(-1, 3, -1, -1)
    weight = torch.rand(target.shape, device=device)
    check(form, x, target, reduction=reduction, weight=weight)
    check(form, x, target.contiguous(), reduction=reduction)
    check(form, x.contiguous(), target, reduction=reduction)
    check(form, x, 0.9, reduction=reduction)


@by_form
@pytest.mark.parametrize("number", [False, True])
def test_channels_last_stays(backend, device, form, number):
    x, target = make(form, (2, 3, 5, 7), device)
    x = x.to(memory_format=torch.channels_last)
    ours = run(FORMS[form][0], x, 0.9 if number else target, torch.randn_like(x), reduction="none")
    assert not x.is_contiguous()
    for value in ours.values():
        assert value.stride() == torch.empty_like(x).stride()


def check_alone(form, value, target, dtype, device):
    """Check a batch of one value."""
    x = torch.full((19,), value, dtype=dtype, device=device)
    for reduction in REDUCTIONS:
        check(form, x, torch.full_like(x, target), reduction=reduction)
        check(form, x, target, reduction=reduction)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("value", ENDS)
def test_probabilities_at_the_ends(backend, device, value, target):
    check_alone("probabilities", value, target, torch.float32, device)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("value", ENDS)
def test_probabilities_at_the_ends_in_float64(backend, device, value, target):
    x = torch.full((19,), value, dtype=torch.float64, device=device)
    dy = torch.randn_like(x)
    ours_of, torchs_of = FORMS["probabilities"]
    ours = run(ours_of, x, target, dy, reduction="none")
    torchs = run(torchs_of, x, torch.full_like(x, target), dy, reduction="none")
    torch.testing.assert_close(ours["y"], torchs["y"], rtol=1e-14, atol=0)
    # In float64 too torch's smallest denominator is 1e-12 rounded to float32.
    torch.testing.assert_close(ours["dx"], torchs["dx"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", ENDS)
def test_gradient_of_the_target_at_the_ends(backend, device, value, dtype):
    """It knows no smallest logarithm, as in torch: at 0 and 1 it is infinite."""
    found = []
    for function in FORMS["probabilities"]:
        x = torch.full((19,), value, dtype=dtype, device=device)
        target = torch.full_like(x, 0.3).requires_grad_()
        found += torch.autograd.grad(function(x, target, reduction="sum"), target)
    torch.testing.assert_close(*found, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 88.0, -88.0, 100.0, -100.0, 1e4, -1e4, float("inf"), float("-inf"), float("nan")],
)
def test_logits_of_any_size(backend, device, dtype, value, target):
    check_alone("logits", value, target, dtype, device)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_small_losses_keep_their_digits(backend, device, label):
    # Powers of two are exact distances from 1; powers of three are rounded in 1 - x.
    twos = 2.0 ** -torch.arange(5.0, 24.0, device=device)
    threes = 3.0 ** -torch.arange(3.0, 40.0, device=device)
    distance = twos if label == 1.0 else torch.cat([twos, threes])
    for form, x in (("probabilities", (label - distance).abs()), ("logits", -distance.log())):
        if form == "logits" and label == 0.0:
            continue  # the loss is the difference of two large numbers, in torch too
        loss = FORMS[form][0](x, label, reduction="none")
        exact = FORMS[form][1](x.double(), torch.full_like(x, label).double(), reduction="none")
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


@by_form
@by_reduction
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("number", [False, True])
def test_half_types_are_computed_in_float32(backend, device, form, reduction, dtype, number):
    """The only error is that of the result's own rounding, far below torch's."""
    x, target = make(form, (9, 57), device, dtype)
    weight = torch.rand(57, device=device).to(dtype)
    dy = torch.randn(x.shape if reduction == "none" else (), device=device).to(dtype)
    filled = torch.full_like(x, 0.9, dtype=torch.float32) if number else target.float()
    options = {"weight": weight, "reduction": reduction}
    ours = run(FORMS[form][0], x, 0.9 if number else target.requires_grad_(), dy, **options)
    wide = options | {"weight": weight.float()}
    exact = run(FORMS[form][1], x.float(), filled.requires_grad_(not number), dy.float(), **wide)
    for name, value in ours.items():
        assert value.dtype == dtype
        rtol = 0.51 * torch.finfo(dtype).eps  # below float16's normal numbers: half its smallest
        torch.testing.assert_close(value.float(), exact[name], rtol=rtol, atol=2.0**-25)


@by_reduction
@pytest.mark.parametrize("value", [1e4, -1e4, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("position", [0, 8, 36])
def test_one_unusual_logit_among_others(backend, device, reduction, value, position):
    x, _ = make("logits", (37,), device)
    x[position] = value
    pos_weight = torch.rand(37, device=device) + 0.5
    for target in (0.0, 0.5, 1.0):
        check("logits", x, target, reduction=reduction)
        check("logits", x, torch.full_like(x, target), reduction=reduction, pos_weight=pos_weight)


@by_form
@by_reduction
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_the_target(backend, device, form, reduction, dtype):
    x, target = make(form, (9, 57), device, dtype)
    weights = [{}, {"weight": torch.rand(57).to(x)}]
    if form == "logits":
        weights += [weights[1] | {"pos_weight": torch.rand(9, 1).to(x)}]
    for options in weights:
        ours = check(form, x, target.requires_grad_(), reduction=reduction, **options)
        assert set(ours) == {"y", "dx", "dtarget"}
        # Without the input's gradient the target's is the same.
        loss = FORMS[form][0](x, target, reduction=reduction, **options)
        (alone,) = torch.autograd.grad(loss.sum(), target)
        loss = FORMS[form][0](x.clone().requires_grad_(), target, reduction=reduction, **options)
        (both,) = torch.autograd.grad(loss.sum(), target)
        assert torch.equal(alone, both)


def weights_of(form, shape, **kwargs):
    """Nothing, a weight, and for logits both weights."""
    weight, pos_weight = torch.rand(shape[-1], **kwargs) + 0.5, torch.rand(shape, **kwargs) + 0.5
    yield {}
    yield {"weight": weight}
    if form == "logits":
        yield {"pos_weight": pos_weight}
        yield {"weight": weight, "pos_weight": pos_weight}


@by_form
@by_reduction
def test_gradcheck(backend, device, form, reduction):
    kwargs = {"dtype": torch.float64, "device": device}
    x = torch.rand(3, 4, **kwargs) * 0.8 + 0.1
    x = (x if form == "probabilities" else x.logit()).requires_grad_()
    target = (torch.rand(3, 4, **kwargs) * 0.8 + 0.1).requires_grad_()
    for weights in weights_of(form, (3, 4), **kwargs):

        def function(x, target, weights=weights):
            return FORMS[form][0](x, target, reduction=reduction, **weights)

        def with_number(x, weights=weights):
            return FORMS[form][0](x, 0.9, reduction=reduction, **weights)

        assert gradcheck(function, (x, target))
        assert gradgradcheck(function, (x, target))
        assert gradcheck(with_number, (x,))
        assert gradgradcheck(with_number, (x,))


@by_form
@by_reduction
def test_second_derivative_matches_torch(backend, device, form, reduction):
    x, target = make(form, (9, 57), device)
    weight, dy = torch.rand(57, device=device), torch.randn(9, 57, device=device)

    def second(function, dtype):
        u, t = (v.to(dtype).requires_grad_() for v in (x, target))
        y = function(u, t, weight=weight.to(dtype), reduction=reduction)
        dx, dt = torch.autograd.grad((y * 3).sum(), (u, t), create_graph=True)
        return torch.autograd.grad(dx, (u, t), dy.to(dtype), retain_graph=True) + (
            torch.autograd.grad(dt, u, dy.to(dtype))
        )

    ours, torchs = FORMS[form]
    results = second(ours, x.dtype), second(torchs, x.dtype), second(torchs, torch.float64)
    of_x, mixed = cross_entropy_second_bounds(x, target, weight, from_logits=form == "logits")
    factor = 3 * dy.double().abs() / (x.numel() if reduction == "mean" else 1)
    of_each = {"dx dx": of_x * factor, "dx dt": mixed * factor, "dt dx": mixed * factor}
    for values, (name, bound) in zip(zip(*results, strict=True), of_each.items(), strict=True):
        assert_within(bound, *values, name)


@by_form
@by_reduction
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 1, 4, 4)], ids=str)
def test_empty_input(backend, device, form, reduction, shape):
    x, target = make(form, shape, device)
    for given in (target, 0.9, target.clone().requires_grad_()):
        ours = check(form, x, given, reduction=reduction)
        assert ours["dx"].shape == shape
    expected = {"none": torch.empty(shape), "mean": torch.tensor(torch.nan), "sum": torch.zeros(())}
    torch.testing.assert_close(ours["y"].cpu(), expected[reduction], equal_nan=True)
