"""Values and gradients of the GAN losses against the lines of torch that they stand for."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_within
from torch.nn import functional as F

from ganfast.functional import gan_discriminator_loss, gan_generator_loss
from ganfast.nn import GANLoss
from ganfast.verify.loss_bounds import gan_loss_bounds, gan_slope_bound

LOSSES = {
    "logits": {"kind": "bce"},
    "probabilities": {"kind": "bce", "from_logits": False},
    "hinge": {"kind": "hinge"},
    "squared": {"kind": "lsgan"},
    "linear": {"kind": "wasserstein"},
}
LABELLED = {
    "logits": F.binary_cross_entropy_with_logits,
    "probabilities": F.binary_cross_entropy,
    "squared": F.mse_loss,
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# One score an image, scores of a patch discriminator, tails, more of one kind than of the other.
SHAPES = [
    ((64,), (64,)), ((1,), (1,)), ((), ()), ((17,), (33,)), ((128, 1, 30, 30), (128, 1, 30, 30)),
    ((4097,), (3, 5)), ((7, 1, 3, 5), (70001,)), ((5, 1), (2, 1)),
]  # fmt: skip
UNUSUAL = [1e4, -1e4, float("inf"), float("-inf"), float("nan")]

by_form = pytest.mark.parametrize("form", LOSSES)


def script_discriminator(real, fake, form, real_label=1.0, fake_label=0.0):
    """The loss and the mean scores as scripts write them."""
    if form == "hinge":
        loss = F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()
    elif form == "linear":
        loss = -real.mean() + fake.mean()
    else:
        real_loss = LABELLED[form](real, torch.full_like(real, real_label))
        loss = real_loss + LABELLED[form](fake, torch.full_like(fake, fake_label))
    real, fake = (x.sigmoid() if form == "logits" else x for x in (real, fake))
    return loss, real.mean().detach(), fake.mean().detach()


def script_generator(fake, form, real_label=1.0):
    if form in ("hinge", "linear"):
        return -fake.mean()
    return LABELLED[form](fake, torch.full_like(fake, real_label))


def scores(form, shape, device="cpu", dtype=torch.float32):
    x = torch.rand(shape) * 0.98 + 0.01 if form == "probabilities" else torch.randn(shape) * 2
    return x.to(device, dtype)


def leaf(x):
    return x.detach().requires_grad_()


def run(function, *inputs, dloss=1.75):
    """Return what the function gives, and the gradient of every input."""
    inputs = [leaf(x) for x in inputs]
    loss, *means = function(*inputs)
    gradients = torch.autograd.grad(loss, inputs, torch.full_like(loss, dloss))
    names = ("loss", "real_score", "fake_score")
    results = dict(zip(names, (loss.detach(), *means), strict=False))
    return results | {f"d{i}": g for i, g in enumerate(gradients)}


def check(ours, script, *inputs, bounds):
    """Compare a loss, its scores and gradients with a script's, by the rule.

    Half scores are widened for the script, as the loss is computed and returned in float32.
    """
    wide = torch.promote_types(inputs[0].dtype, torch.float32)
    results = run(ours, *inputs)
    torchs = run(lambda *xs: script(*(x.to(wide) for x in xs)), *inputs)
    exact = run(script, *(x.double() for x in inputs))
    assert results.keys() == torchs.keys()
    for (name, value), bound in zip(results.items(), bounds, strict=True):
        assert_within(bound, value, torchs[name], exact[name], name)
    return results


def bounds_of(form, *scores, real_label=1.0, fake_label=0.0, dloss=1.75):
    """Return the bounds of loss, scores, and gradients of each tensor of scores."""
    if form in ("hinge", "linear"):
        fake_label = -1.0
    labelled = list(zip(scores, (real_label, fake_label), strict=False))
    gradients = [gan_slope_bound(form, dloss, x, label) for x, label in labelled]
    return gan_loss_bounds(form, *labelled), gradients


def check_discriminator(form, real, fake, **labels):
    losses, gradients = bounds_of(form, real, fake, **labels)
    return check(
        lambda r, f: gan_discriminator_loss(r, f, **LOSSES[form], **labels),
        lambda r, f: script_discriminator(r, f, form, **labels),
        real, fake, bounds=[*losses, *gradients],
    )  # fmt: skip


def check_generator(form, fake, **label):
    (loss, _), gradients = bounds_of("linear" if form == "hinge" else form, fake, **label)
    return check(
        lambda f: (gan_generator_loss(f, **LOSSES[form], **label),),
        lambda f: (script_generator(f, form, **label),),
        fake, bounds=[loss, *gradients],
    )  # fmt: skip


@by_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matches_the_script(backend, device, form, dtype, shapes):
    real, fake = (scores(form, shape, device, dtype) for shape in shapes)
    results = check_discriminator(form, real, fake)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("loss", "real_score", "fake_score"):
        assert results[name].dtype == expected
        assert results[name].shape == ()
        assert not results[name].requires_grad
    assert [results[n].dtype for n in ("d0", "d1")] == [dtype, dtype]
    assert check_generator(form, fake)["loss"].dtype == expected


@pytest.mark.parametrize("form", LABELLED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("real_label", "fake_label"), [(0.9, 0.1), (0.9, 0.0), (0, 1), (1, 0.3)])
def test_labels(backend, device, form, dtype, real_label, fake_label):
    real, fake = scores(form, (61, 9), device, dtype), scores(form, (133,), device, dtype)
    check_discriminator(form, real, fake, real_label=real_label, fake_label=fake_label)
    check_generator(form, fake, real_label=real_label)


def test_least_squares_takes_any_label(backend, device):
    real, fake = scores("squared", (61,), device), scores("squared", (133,), device)
    check_discriminator("squared", real, fake, real_label=1.5, fake_label=-1.0)
    check_generator("squared", fake, real_label=-2)


@by_form
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_any_layout(backend, device, form, layout):
    real, fake = (scores(form, (6, 3, 14, 18), device) for _ in range(2))
    change = {
        "channels_last": lambda x: x.to(memory_format=torch.channels_last),
        "sliced": lambda x: x[1:, :, ::2, 1:],
        "transposed": lambda x: x.transpose(1, 3),
        "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    }[layout]
    results = check_discriminator(form, change(real), fake)
    check_discriminator(form, real, change(fake))
    check_generator(form, change(fake))
    check_split(form, change(real) if layout != "sliced" else change(real)[:4])
    if layout == "channels_last":
        assert results["d0"].stride() == change(real).stride()
        assert results["d1"].stride() == fake.stride()


def check_split(form, both, **labels):
    losses, gradients = bounds_of(form, *both.chunk(2), **labels)
    return check(
        lambda x: gan_discriminator_loss(x, splits=2, **LOSSES[form], **labels),
        lambda x: script_discriminator(*x.chunk(2), form, **labels),
        both, bounds=[*losses, torch.cat(gradients)],
    )  # fmt: skip


@by_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2,), (34,), (64, 1), (6, 1, 7, 5), (8194,)], ids=str)
def test_both_in_one_tensor(backend, device, form, dtype, shape):
    both = scores(form, shape, device, dtype)
    labels = {"real_label": 0.9, "fake_label": 0.1} if form in LABELLED else {}
    split = check_split(form, both, **labels)
    apart = check_discriminator(form, *both.chunk(2), **labels)
    for name in ("loss", "real_score", "fake_score"):
        torch.testing.assert_close(split[name], apart[name])
    torch.testing.assert_close(split["d0"], torch.cat([apart["d0"], apart["d1"]]))


@by_form
@pytest.mark.parametrize("value", UNUSUAL)
@pytest.mark.parametrize("position", [0, 5, 18])
def test_unusual_scores(backend, device, form, value, position):
    if form == "probabilities":
        value = {1e4: 1.0, -1e4: 0.0, UNUSUAL[2]: 1e-45, UNUSUAL[3]: 1e-38}.get(value, 1 - 2.0**-24)
    for unusual_real, unusual_fake in ((True, False), (False, True), (True, True)):
        real, fake = scores(form, (19,), device), scores(form, (20,), device)
        if unusual_real:
            real[position] = value
        if unusual_fake:
            fake[position] = value
        check_discriminator(form, real, fake)
        check_generator(form, fake)
        if form in LABELLED:
            check_discriminator(form, real, fake, real_label=0.9, fake_label=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hinge_at_its_corner_has_torchs_gradient(backend, device, dtype):
    eps = torch.finfo(dtype).eps
    corners = [1.0, -1.0, 1 + eps, 1 - eps, -1 - eps, -1 + eps, 0.0, 3.0]
    x = torch.tensor(corners, dtype=dtype, device=device)
    results = check_discriminator("hinge", x, x)
    real_slope, fake_slope = [0, 1, 0, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1, 1, 1]
    assert (results["d0"] * -8 / 1.75).tolist() == real_slope
    assert (results["d1"] * 8 / 1.75).tolist() == fake_slope


@by_form
def test_only_gradients_that_are_asked_for(backend, device, form):
    real, fake = scores(form, (7, 5), device), scores(form, (9,), device)
    full = run(lambda r, f: gan_discriminator_loss(r, f, **LOSSES[form]), real, fake, dloss=1.0)
    for wanted in (0, 1):
        pair = [leaf(x) if i == wanted else x for i, x in enumerate((real, fake))]
        loss, *means = gan_discriminator_loss(*pair, **LOSSES[form])
        assert loss.requires_grad
        assert not any(mean.requires_grad for mean in means)
        loss.backward()
        assert torch.equal(pair[wanted].grad, full[f"d{wanted}"])
        assert pair[1 - wanted].grad is None
    results = gan_discriminator_loss(real, fake, **LOSSES[form])
    assert not any(value.requires_grad for value in results)
    with torch.no_grad():
        assert not gan_discriminator_loss(leaf(real), fake, **LOSSES[form])[0].requires_grad


class _Stopped(torch.autograd.Function):
    """The same value, and no gradient at all."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return None


def test_no_gradient_of_a_loss_that_has_none(backend, device):
    """As torch's operations: None, not a tensor of zeros."""
    real = leaf(scores("logits", (7, 5), device))
    loss = gan_discriminator_loss(real, scores("logits", (9,), device))[0]
    _Stopped.apply(loss).backward()
    assert real.grad is None


@by_form
def test_loss_in_larger_expressions(backend, device, form):
    real, fake = scores(form, (41, 3), device), scores(form, (133,), device)
    for use in (lambda y: y * 3.0, lambda y: y.square() + 2 * y, lambda y: -y, lambda y: y * 0.0):
        inputs = [leaf(x) for x in (real, fake)]
        loss = gan_discriminator_loss(*inputs, **LOSSES[form])[0]
        gradients = torch.autograd.grad(use(loss), inputs, retain_graph=True)
        alone = leaf(loss)
        (dloss,) = torch.autograd.grad(use(alone), alone)
        for dx, expected in zip(gradients, torch.autograd.grad(loss, inputs, dloss), strict=True):
            assert torch.equal(dx, expected)
    x = leaf(real)
    loss = gan_discriminator_loss(x, fake, **LOSSES[form])[0]
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * once)


@pytest.mark.parametrize("real_label", [1.0, 0.9])
def test_the_tutorials_logarithms(backend, device, real_label):
    """-mean(log D(x) + log(1 - D(G(z)))), as some scripts write the discriminator's loss."""

    def logarithms(real, fake):
        loss = -(torch.log(real) + torch.log(1 - fake)).mean()
        return loss, real.mean().detach(), fake.mean().detach()

    real, fake = (scores("probabilities", (128, 1), device) for _ in range(2))
    criterion = GANLoss(from_logits=False)
    losses, gradients = bounds_of("probabilities", real, fake)
    bounds = [*losses, *gradients]
    results = check(criterion.discriminator, logarithms, real, fake, bounds=bounds)
    assert results["loss"] > 0


@by_form
def test_empty_input(backend, device, form):
    for shapes in [((0,), (0,)), ((0, 1, 4), (5,)), ((5,), (0,))]:
        real, fake = (scores(form, shape, device) for shape in shapes)
        assert check_discriminator(form, real, fake)["loss"].isnan()
    assert check_generator(form, torch.empty(0, device=device))["loss"].isnan()
    assert check_split(form, torch.empty(0, 3, device=device))["loss"].isnan()
