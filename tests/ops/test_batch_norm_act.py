"""Values, gradients and running statistics of batch_norm_act against torch's own layers."""

from __future__ import annotations

import pytest
import torch
from conftest import missing
from oracle import check_layer, run, twin
from torch.autograd import gradcheck, gradgradcheck

import ganfast
from ganfast.activations import ACTIVATIONS
from ganfast.functional import batch_norm_act
from ganfast.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d

LAYERS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
# One value per lane and none over, tails of every kind, few channels, many channels.
SHAPES = [
    (6, 5), (64, 1), (4, 70), (3, 600), (4, 3, 7), (2, 17, 16), (4, 6, 5, 5), (8, 64, 4, 4),
    (2, 3, 40, 41), (16, 2, 32, 32), (4, 33, 1, 1), (2, 5, 2, 3, 4),
]  # fmt: skip
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ORDERS = ["norm_act", "act_norm"]


def make(shape, device="cpu", dtype=torch.float32, **options):
    """A layer with weights of both signs, an input off centre, and a gradient."""
    layer = LAYERS[len(shape)](shape[1], **options)
    if layer.affine:
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    x = (torch.randn(shape) * 2 + 0.5).to(dtype)
    layer = layer.to(device=device)
    if dtype == torch.float64:
        layer = layer.double()
    return layer, x.to(device), torch.randn(shape).to(device=device, dtype=dtype)


def check_centred(shape, device, order, training):
    """Hold y to a few roundings of its own size where the mean is 10^4 standard deviations.

    So near its mean, x less the mean is exact: what is left is the rounding of the mean's rest, of
    scale and shift, and of the result.
    """
    layer, x, dy = make(shape, device, activation="leaky_relu", order=order)
    x = x + 1e4
    layer.running_mean.copy_(1e4 + torch.randn_like(layer.running_mean))
    layer.train(training)
    exact = run(twin(layer, torch.float64), x.double(), dy.double())["y"]
    assert (run(layer, x, dy)["y"] - exact).abs().max() < 2**-20 * exact.abs().max()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [True, False])
def test_error_does_not_grow_with_the_mean(backend, device, order, training):
    check_centred((8, 6, 4, 4), device, order, training)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_matches_torch(backend, device, shape, dtype):
    layer, x, dy = make(shape, device, dtype, activation="leaky_relu", negative_slope=0.2)
    check_layer(layer, x, dy, rounds=2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_mode_matches_torch(backend, device, activation, order, training, channels_last):
    layer, x, dy = make((6, 20, 9, 5), device, activation=activation, order=order)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.1, 3)
    if channels_last:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    layer.train(training)
    check_layer(layer, x, dy)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, 1.5, -0.5])
@pytest.mark.parametrize("order", ORDERS)
def test_any_slope(backend, device, slope, order):
    layer, x, dy = make(
        (8, 6, 4, 4), device, activation="leaky_relu", negative_slope=slope, order=order
    )
    check_layer(layer, x, dy)


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.8])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("affine", [True, False])
def test_constructor_options(backend, device, eps, momentum, affine):
    layer, x, dy = make(
        (8, 6, 4, 4), device, activation="relu", eps=eps, momentum=momentum, affine=affine
    )
    check_layer(layer, x, dy, rounds=3)


@pytest.mark.parametrize("training", [True, False])
def test_without_running_statistics(backend, device, training):
    layer, x, dy = make((8, 6, 4, 4), device, activation="relu", track_running_stats=False)
    layer.train(training)
    check_layer(layer, x, dy)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(12, 5), (12, 70), (12, 4, 3, 5), (12, 40, 4, 4)], ids=str)
def test_splits_are_separate_calls(backend, device, order, momentum, shape):
    layer, x, dy = make(shape, device, activation="relu", order=order, splits=3, momentum=momentum)
    check_layer(layer, x, dy, rounds=2)


def test_splits_are_the_bits_of_separate_calls(backend, device):
    layer, x, dy = make((8, 6, 4, 4), device, activation="relu", splits=2)
    single, _, _ = make((8, 6, 4, 4), device, activation="relu")
    single.load_state_dict(layer.state_dict())
    together, apart = run(layer, x, dy), run(single, x, dy, splits=2)
    for name in ("y", "dx", "running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(together[name], apart[name]), name


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-8, 1e-38])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_unusual_weights(backend, device, weight, activation):
    layer, x, dy = make((8, 6, 4, 4), device, activation=activation)
    with torch.no_grad():
        layer.weight.fill_(weight)
    check_layer(layer, x, dy)


@pytest.mark.parametrize("shape", [(8, 6, 4, 4), (64, 24), (4, 3, 32, 32)], ids=str)
def test_large_mean_small_variance(backend, device, shape):
    layer, x, dy = make(shape, device, activation="leaky_relu")
    x = (1e4 + 1e-2 * torch.randn(shape)).to(x)
    check_layer(layer, x, dy)


def test_first_values_far_from_the_rest(backend, device):
    # The native kernel sums about a guess taken from the first values; here it guesses badly.
    for shape in [(40, 3, 4, 4), (400, 24)]:
        layer, x, dy = make(shape, device, activation="relu")
        x[:16] += 1e5
        check_layer(layer, x, dy)


def test_channels_of_very_different_scale(backend, device):
    layer, x, dy = make((16, 9, 6, 6), device, activation="relu")
    x *= 10.0 ** torch.arange(-4, 5, device=device).view(1, -1, 1, 1)
    check_layer(layer, x, dy)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_values_that_are_not_finite(backend, device, value, order, activation, training):
    layer, x, dy = make((5, 4, 6, 6), device, activation=activation, order=order)
    layer.train(training)
    x[1, 2, 3, 3] = value
    x[0, 1, 0, 0] = value
    check_layer(layer, x, dy)


def test_constant_input(backend, device):
    layer, x, _ = make((8, 6, 5, 5), device, activation="leaky_relu")
    x[:] = 0.1
    x[:, 3] = 0.0
    layer(x)
    torch.testing.assert_close(layer.running_var, torch.full_like(layer.running_var, 0.9))


def test_large_input_cut_into_parts(several_threads, backend, device):
    layer, x, dy = make((64, 2, 64, 64), device, activation="leaky_relu")
    check_layer(layer, x, dy)
    layer, x, dy = make((64, 12, 32, 32), device, activation="leaky_relu")
    check_layer(layer, x.to(memory_format=torch.channels_last), dy)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_many_values_of_one_sign(backend, device, layout):
    # Their sum in one float would round every addition the same way: torch's backward does so
    # channels-last, where the eager backend uses it.
    if (backend, layout) == ("eager", torch.channels_last):
        pytest.skip("torch's own channels-last sums have no such bound")
    channels = 20 if layout == torch.channels_last else 2
    layer, x, dy = make((32, channels, 64, 64), device, activation="leaky_relu")
    x, dy = 0.1 + 1e-3 * x, 0.1 + 1e-3 * dy
    x[0] = 0
    check_layer(layer, x.to(memory_format=layout), dy.to(memory_format=layout))


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty_batch(backend, device, shape):
    layer, x, dy = make(shape, device, activation="relu")
    before = layer.running_mean.clone(), layer.running_var.clone()
    y = layer(x)
    assert y.shape == shape
    y.backward(dy)
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    assert torch.equal(layer.bias.grad, torch.zeros_like(layer.bias))
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_at_exactly_zero(backend, device, activation):
    x = torch.zeros(4, 3, 2, 2, device=device, requires_grad=True)
    mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
    y = batch_norm_act(x, mean, var, eps=0.0, activation=activation, negative_slope=0.25)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.unique().tolist() == [{None: 1.0, "relu": 0.0, "leaky_relu": 0.25}[activation]]


def test_mask_of_backward_is_that_of_forward(backend, device):
    # z lands on both sides of 0 within a rounding: the gradient must use the sign that y has.
    x = torch.randn(4, 2, 64, 64, device=device) * 1e-7 + 1
    x.requires_grad_()
    mean, var = torch.ones(2, device=device), torch.full((2,), 0.37, device=device)
    weight = torch.tensor([1.7, -0.3], device=device)
    y = batch_norm_act(x, mean, var, weight, activation="leaky_relu", negative_slope=0.5)
    (dx,) = torch.autograd.grad(y.sum(), x)
    full = dx.abs().max(dim=3).values.amax(dim=(0, 2)).view(1, 2, 1, 1)
    positive = y > 0
    assert 0 < positive.sum() < positive.numel()
    assert torch.equal(dx.abs() > 0.75 * full, positive)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channels_last", "channels_last_3d"])
def test_any_layout(backend, device, layout):
    if layout == "sliced":
        layer, _, dy = make((6, 5, 6, 6), device, activation="relu")
        x = torch.randn(6, 9, 6, 12, device=device)[:, 2:7, :, ::2]
    elif layout == "transposed":
        layer, _, dy = make((6, 5, 6, 7), device, activation="relu")
        x = torch.randn(5, 6, 7, 6, device=device).permute(1, 0, 3, 2)
    elif layout == "channels_last":
        layer, x, dy = make((6, 5, 6, 7), device, activation="relu")
        x = x.to(memory_format=torch.channels_last)
    else:
        layer, x, dy = make((3, 5, 2, 3, 4), device, activation="relu")
        x = x.to(memory_format=torch.channels_last_3d)
    ours = layer(x.requires_grad_())
    assert ours.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
    (dx,) = torch.autograd.grad(ours, x, dy)
    assert dx.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
    check_layer(layer, x, dy)


def test_expanded_gradient(backend, device):
    layer, x, _ = make((6, 5, 4, 4), device, activation="leaky_relu")
    check_layer(layer, x, torch.ones((), device=device).expand(x.shape))


def test_two_forwards_before_one_backward(backend, device):
    layer, x, dy = make((8, 6, 4, 4), device, activation="leaky_relu", negative_slope=0.2)
    pair = twin(layer)
    for module in (layer, pair):
        (module(x) * dy).sum().add((module(2 * x + 1) * dy.flip(0)).sum()).backward()
    torch.testing.assert_close(layer.weight.grad, pair[0].weight.grad)
    torch.testing.assert_close(layer.bias.grad, pair[0].bias.grad)
    torch.testing.assert_close(layer.running_var, pair[0].running_var)


def test_only_gradients_that_are_asked_for(backend, device):
    layer, x, dy = make((8, 6, 4, 4), device, activation="relu")
    layer(x).backward(dy)
    assert x.grad is None
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    layer.weight.grad = None
    x.requires_grad_()
    layer(x).backward(dy)
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("given", ["weight", "bias"])
def test_weight_or_bias_alone(backend, device, given):
    x = torch.randn(8, 6, 4, 4, device=device)
    vector = torch.randn(6, device=device, requires_grad=True)
    ours = batch_norm_act(x, None, None, **{given: vector}, training=True, activation="relu")
    (dours,) = torch.autograd.grad(ours.square().sum(), vector)
    theirs = torch.nn.functional.batch_norm(x, None, None, **{given: vector}, training=True).relu()
    (dtheirs,) = torch.autograd.grad(theirs.square().sum(), vector)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(dours, dtheirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_half_module(backend, device, dtype):
    layer, x, dy = make((8, 6, 4, 4), device, dtype, activation="relu")
    check_layer(layer.to(dtype), x, dy)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("training", "splits"), [(True, 1), (True, 2), (False, 1)])
@pytest.mark.parametrize("shape", [(6, 3, 2, 2), (6, 9)], ids=str)
def test_gradcheck(backend, device, order, activation, training, splits, shape):
    kwargs = {"dtype": torch.float64, "device": device}
    x = torch.randn(shape, **kwargs, requires_grad=True)
    weight = torch.randn(shape[1], **kwargs, requires_grad=True)
    bias = torch.randn(shape[1], **kwargs, requires_grad=True)
    mean, var = torch.randn(shape[1], **kwargs), torch.rand(shape[1], **kwargs) + 0.5

    def function(x, weight, bias):
        return batch_norm_act(
            x, mean.clone(), var.clone(), weight, bias, training, activation=activation,
            negative_slope=0.2, order=order, splits=splits,
        )  # fmt: skip

    assert gradcheck(function, (x, weight, bias))
    assert gradgradcheck(function, (x, weight, bias))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [True, False])
def test_third_derivative(backend, device, order, training):
    kwargs = {"dtype": torch.float64, "device": device}
    x = torch.randn(5, 3, 2, **kwargs, requires_grad=True)
    weight = torch.randn(3, **kwargs, requires_grad=True)
    mean, var = torch.randn(3, **kwargs), torch.rand(3, **kwargs) + 0.5

    def reference():
        u = torch.nn.functional.leaky_relu(x, 0.2) if order == "act_norm" else x
        m, v = (u.mean((0, 2)), u.var((0, 2), correction=0)) if training else (mean, var)
        column = (1, 3, 1)
        z = (u - m.view(column)) / (v.view(column) + 1e-5).sqrt() * weight.view(column)
        return torch.nn.functional.leaky_relu(z, 0.2) if order == "norm_act" else z

    def fused():
        return batch_norm_act(
            x, mean.clone(), var.clone(), weight, None, training, activation="leaky_relu",
            negative_slope=0.2, order=order,
        )  # fmt: skip

    results = []
    for y in (reference(), fused()):
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(second.square().sum(), (x, weight)))
    torch.testing.assert_close(results[1], results[0])


def test_same_bits_every_run(backend, device):
    layer, x, dy = make((32, 40, 12, 12), device, activation="leaky_relu", momentum=0.0)
    first, second = run(layer, x, dy), None
    for _ in range(5):
        layer.zero_grad()
        second = run(layer, x, dy)
        for name in ("y", "dx", "dweight", "dbias"):
            assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("shape", [(64, 2, 64, 64), (64, 40, 12, 12), (3000, 50)], ids=str)
def test_bits_do_not_depend_on_threads(several_threads, shape):
    if "native" not in ganfast.backend.available("cpu"):
        missing("native", ganfast.backend.explain("cpu"))
    layer, x, dy = make(shape, activation="leaky_relu", momentum=0.0)
    many = run(layer, x, dy)
    layer.zero_grad()
    torch.set_num_threads(1)
    try:
        one = run(layer, x, dy)
    finally:
        torch.set_num_threads(several_threads)
    for name in ("y", "dx", "dweight", "dbias"):
        assert torch.equal(many[name], one[name]), name


@pytest.mark.parametrize("channels_last", [True, False])
def test_uninitialised_memory_is_never_read(backend, device, channels_last):
    layer, x, dy = make((5, 7, 6, 5), device, activation="relu", momentum=0.0)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    plain = run(layer, x, dy)
    layer.zero_grad()
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    try:
        assert torch.empty(4).isnan().all()
        filled = run(layer, x, dy)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in ("y", "dx", "dweight", "dbias", "running_mean", "running_var"):
        assert torch.equal(plain[name], filled[name]), name


def test_two_python_twins_of_autograd_agree(device):
    """The Python autograd functions are used without the extension; here beside it."""
    from ganfast.ops import batch_norm_act as op

    x = torch.randn(8, 6, 4, 4, device=device, requires_grad=True)
    weight = torch.randn(6, device=device, requires_grad=True)
    bias = torch.randn(6, device=device, requires_grad=True)
    act_and_splits = ("leaky_relu", 0.2, "norm_act", 1)
    gradients = []
    for function in (op._train_autograd, op.train):
        y, _ = function(x, weight, bias, None, None, None, 0.1, 1e-5, *act_and_splits)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight, bias), create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        gradients.append((y, *first, *torch.autograd.grad(penalty, (x, weight, bias))))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_others_may_write_to_the_output(backend, device, channels_last):
    from ganfast.ops import batch_norm_act as op

    x = torch.randn(4, 3, 2, 2, device=device)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    x.requires_grad_()
    options = (None, None, None, None, None, 0.1, 1e-5, "relu", 0.0, "norm_act", 1)
    for function in (op._train_autograd, op.train):
        (expected,) = torch.autograd.grad(2 * function(x, *options)[0].sum(), x)
        (gradient,) = torch.autograd.grad(function(x, *options)[0].mul_(2).sum(), x)
        assert torch.equal(gradient, expected)


def test_version_of_running_statistics_moves(backend, device):
    layer, x, _ = make((8, 6, 4, 4), device)
    before = layer.running_mean._version
    layer(x)
    assert layer.running_mean._version > before


def test_import_order_of_backends():
    assert ganfast.backend.available("cpu")[-1] == "eager"
