"""Inputs that are hard on batch_norm_act, under many seeds, and proof that the rule can fail.

``GANFAST_ADVERSARIAL_SEEDS=200 python -m pytest -s tests/ops/test_adversarial.py`` is the long run;
it prints the largest share of its bound that each result took.
"""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
import torch
from oracle import assert_within, check_layer, run, twin
from test_batch_norm_act import make

from ganfast.verify.bounds import layer_bounds, penalty_bounds
from ganfast.verify.exactness import judge

SEEDS = int(os.environ.get("GANFAST_ADVERSARIAL_SEEDS", "2"))
# NC* and channels-last; few values, tails, runs of more than one sum, several threads.
SHAPES = [(8, 6, 4, 4), (64, 24), (5, 9, 7, 3), (4, 3, 32, 32), (3, 7, 2, 1), (2, 5), (400, 8)]
FORMS = [
    (None, "norm_act"), ("relu", "norm_act"), ("leaky_relu", "norm_act"), ("leaky_relu", "act_norm")
]  # fmt: skip
WEIGHTS = [0.0, 1e-30, 1e-38, -1.0]


def offset(x):
    return 1e4 + 1e-2 * x


def negative_offset(x):
    return -1e4 + 1e-2 * x


def magnitudes(x):
    channels = torch.linspace(-4, 4, x.shape[1]).view(1, -1, *[1] * (x.dim() - 2))
    return x * 10.0**channels


def first_values_far_away(x):
    # The native kernels guess the mean from them.
    far = torch.zeros(len(x), *[1] * (x.dim() - 1))
    far[: max(1, len(x) // 8)] = 1e5
    return x + far


def constant_channels(x):
    x[:, 0::3] = 0.1
    x[:, 1::3] = 1e4
    return x


def nearly_constant_channels(x):
    return 1e4 + (x > 0) * 2.0**-10  # two neighbouring float32 numbers


INPUTS = [
    offset, negative_offset, magnitudes, first_values_far_away, constant_channels,
    nearly_constant_channels,
]  # fmt: skip


@pytest.fixture(scope="module")
def largest():
    """Print the largest share of its bound that each result took."""
    shares = defaultdict(float)
    yield shares
    for key, share in sorted(shares.items()):
        print(f"\n{key}: {share:.2f}", end="")


def draw(change, shape, seed, activation, order, dtype=torch.float32):
    torch.manual_seed(seed)
    layer, x, dy = make(shape, dtype=dtype, activation=activation, order=order, negative_slope=0.2)
    with torch.no_grad():
        for i, weight in enumerate(WEIGHTS):  # other channels keep what was drawn
            if seed % 2 and i < shape[1] - 1:
                layer.weight[i] = weight
    x = change((x.float() - 0.5) / 2).to(dtype)
    if seed % 3 == 0 and x.dim() == 4:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    return layer, x, dy


@pytest.mark.parametrize("change", INPUTS, ids=lambda change: change.__name__)
@pytest.mark.parametrize(("activation", "order"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients(backend, largest, change, activation, order, dtype):
    for seed in range(SEEDS):
        layer, x, dy = draw(change, SHAPES[seed % len(SHAPES)], seed, activation, order, dtype)
        for name, share in check_layer(layer, x, dy).items():
            key = f"{backend} {str(dtype)[6:]} {change.__name__} {name}"
            largest[key] = max(largest[key], share)


def penalty(module, x, dy):
    """Return an input's gradient, and the gradients of its square."""
    x, dy = x.detach().requires_grad_(), dy.detach().requires_grad_()
    (dx,) = torch.autograd.grad(module(x), x, dy, create_graph=True)
    weight = next(iter(module.parameters()))
    found = torch.autograd.grad(dx.square().sum(), [dy, x, weight])
    return dx.detach(), dict(zip(("d_dy", "d_x", "d_weight"), found, strict=True))


@pytest.mark.parametrize("change", INPUTS, ids=lambda change: change.__name__)
@pytest.mark.parametrize(("activation", "order"), FORMS)
def test_gradient_penalty(backend, largest, change, activation, order):
    for seed in range(SEEDS):
        layer, x, dy = draw(change, SHAPES[seed % len(SHAPES)], seed, activation, order)
        plain = x.contiguous(), dy.contiguous()
        dx, exact = penalty(twin(layer, torch.float64), *(t.double() for t in plain))
        _, torchs = penalty(twin(layer), *plain)
        _, ours = penalty(layer, x, dy)
        for name, bound in penalty_bounds(layer, *plain, dx).items():
            share = assert_within(bound, ours[name], torchs[name], exact[name], name)
            key = f"{backend} penalty {change.__name__} {name}"
            largest[key] = max(largest[key], share)


def uncentred(layer, x):
    """Compute y as x * scale + shift, which loses mean / std in digits."""
    column = (1, -1, 1, 1)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    scale = layer.weight * (var + layer.eps).rsqrt()
    z = x * scale.view(column) + (layer.bias - mean * scale).view(column)
    return torch.nn.functional.leaky_relu(z, layer.negative_slope)


def test_scaling_before_centring_breaks_the_rule():
    layer, x, dy = make((8, 6, 4, 4), activation="leaky_relu")
    for inputs, passes in ((x - 0.5, True), (1e4 + 1e-2 * torch.randn(8, 6, 4, 4), False)):
        exact = run(twin(layer, torch.float64), inputs.double(), dy.double())["y"]
        y = uncentred(layer, inputs).detach()
        assert judge("y", y, y, exact, layer_bounds(layer, inputs, dy)["y"]).passed == passes


@pytest.mark.parametrize("name", ["y", "dx", "dweight", "dbias", "running_mean", "running_var"])
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
@pytest.mark.parametrize("training", [True, False])
def test_a_relative_error_of_one_millionth_breaks_the_rule(name, order, training):
    layer, x, dy = make((8, 6, 4, 4), activation="leaky_relu", order=order)
    layer.running_mean.normal_()
    layer.train(training)
    # Terms of one sign: of a sum that cancels, a millionth is less than its terms' roundings.
    if name == "running_mean":
        x = x + 10
    elif name == "dweight":
        u = torch.nn.functional.leaky_relu(x) if order == "act_norm" else x
        dy = u - (u.mean((0, 2, 3), keepdim=True) if training else layer.running_mean.view(6, 1, 1))
    elif name == "dbias":
        dy = dy.abs()
    bound = layer_bounds(layer, x, dy)[name]
    exact = run(twin(layer, torch.float64), x.double(), dy.double())[name]
    right, wrong = exact.float(), (exact * (1 + 1e-6)).float()
    assert judge(name, right, right, exact, bound).passed
    assert not judge(name, wrong, wrong, exact, bound).passed
