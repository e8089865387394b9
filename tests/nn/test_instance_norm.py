"""InstanceNorm with an activation: torch's values, statistics, habits and errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from drawn import assert_laid_out_like, check, draw_shape, draw_tensor, fuzz, st
from oracle import check_layer, twin
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ganfast.activations import ACTIVATIONS, ActivationConfig
from ganfast.functional import instance_norm_act
from ganfast.nn import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from ganfast.verify.bounds import NormBounds, penalty_bounds
from ganfast.verify.exactness import judge

CLASSES = [InstanceNorm1d, InstanceNorm2d, InstanceNorm3d]
SHAPES = {1: (3, 7, 33), 2: (3, 7, 9, 5), 3: (2, 7, 3, 5, 4)}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = [(1, False), (2, False), (2, True), (3, False), (3, True)]
layouts = pytest.mark.parametrize(("dims", "channels_last"), LAYOUTS)


def make(dims, dtype=torch.float32, **options):
    """Return a layer for inputs of ``dtype``, its parameters and buffers drawn."""
    options = {"activation": "leaky_relu", "negative_slope": 0.2, **options}
    layer = CLASSES[dims - 1](7, **options)
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_()
            if name == "running_var":
                tensor.square_().add_(0.5)
    return layer.double() if dtype == torch.float64 else layer


def draw(dims, channels_last, dtype=torch.float32, images=None):
    shape = (images or SHAPES[dims][0], *SHAPES[dims][1:])
    x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    if channels_last:
        x, dy = (t.contiguous(memory_format=LAST[dims]) for t in (x, dy))
    return x, dy


@layouts
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
@pytest.mark.parametrize("tracked", [False, True])
def test_values_gradients_and_statistics(backend, dims, channels_last, dtype, order, tracked):
    layer = make(dims, dtype, affine=tracked, track_running_stats=tracked, order=order)
    # Plain tensors for torch: its gradients of one image are wrong where dy is channels-last (seen
    # with torch 2.14).
    check_layer(layer, *draw(dims, channels_last, dtype), rounds=2, same_layout=False)
    check_layer(layer.eval(), *draw(dims, channels_last, dtype), same_layout=False)
    check_layer(layer.train(), *draw(dims, channels_last, dtype, images=1), same_layout=False)


@layouts
@pytest.mark.parametrize("activation", [None, "relu"])
def test_other_activations(backend, dims, channels_last, activation):
    layer = make(dims, activation=activation, affine=True)
    check_layer(layer, *draw(dims, channels_last), same_layout=False)


@pytest.mark.parametrize("channels_last", [False, True])
def test_statistics_of_many_images_stay_within_the_bound(backend, channels_last):
    layer = make(2, affine=True, track_running_stats=True)
    x, dy = draw(2, channels_last, images=64)
    check_layer(layer, 3 + x, dy, rounds=3, same_layout=False)


@layouts
def test_half_precision_parameters_and_statistics(backend, dims, channels_last):
    layer = make(dims, affine=True, track_running_stats=True).to(torch.bfloat16)
    check_layer(layer, *draw(dims, channels_last, torch.bfloat16), same_layout=False)


@layouts
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_double_backward(backend, dims, channels_last, order):
    layer = make(dims, affine=True, order=order)
    x, dy = draw(dims, channels_last)
    found = [penalty(layer, x, dy), penalty(twin(layer), x.contiguous(), dy.contiguous())]
    exact = penalty(twin(layer, torch.float64), x.contiguous().double(), dy.contiguous().double())
    bounds = penalty_bounds(layer, x, dy, exact["dx"])
    for name, bound in bounds.items():
        verdict = judge(name, found[0][name], found[1][name], exact[name], bound)
        assert verdict.passed, verdict.describe()


def penalty(module, x, dy):
    x, dy = (t.clone().requires_grad_() for t in (x, dy))
    weight = next(module.parameters())
    (dx,) = torch.autograd.grad(module(x), x, dy, create_graph=True)
    found = torch.autograd.grad(dx.square().sum(), (x, dy, weight))
    return {"dx": dx.detach(), **dict(zip(("d_x", "d_dy", "d_weight"), found, strict=True))}


@pytest.mark.parametrize("channels_last", [False, True])
def test_third_derivative(channels_last):
    layer = make(2, torch.float64, affine=True, negative_slope=0.3)
    x, dy = (t[..., :3, :2].requires_grad_() for t in draw(2, channels_last, torch.float64))

    def dx(x, dy):
        return torch.autograd.grad(layer(x), x, dy, create_graph=True)

    assert torch.autograd.gradgradcheck(dx, (x, dy))


@layouts
def test_memory_format_stays(backend, dims, channels_last):
    x, dy = draw(dims, channels_last)
    x.requires_grad_()
    y = make(dims, affine=True)(x)
    y.backward(dy)
    assert y.stride() == x.stride()
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_input_without_a_batch(backend, dims):
    x, _ = draw(dims, False)
    for training in (True, False):
        layer = make(dims, affine=True, track_running_stats=True).train(training)
        other = copy.deepcopy(layer)
        assert torch.equal(layer(x[0]), other(x[:1])[0])
        torch.testing.assert_close(layer.state_dict(), other.state_dict(), rtol=0, atol=0)


@layouts
@pytest.mark.parametrize("training", [True, False])
def test_empty(backend, dims, channels_last, training):
    for shape in ((0, *SHAPES[dims][1:]), (*SHAPES[dims][:-1], 0)):
        layer = make(dims, affine=True, track_running_stats=True).train(training)
        before = copy.deepcopy(layer.state_dict())
        x = torch.zeros(shape)
        if channels_last:
            x = x.contiguous(memory_format=LAST[dims])
        y = layer(x.requires_grad_())
        y.sum().backward()
        assert y.shape == x.grad.shape == shape
        assert not layer.weight.grad.any()
        assert not layer.bias.grad.any()
        torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [None, 0.0, 1.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_momentum_is_torchs(momentum, channels_last):
    layer = make(2, momentum=momentum, track_running_stats=True)
    pair = twin(layer)
    x, _ = draw(2, channels_last)
    layer(x), pair(x)
    torch.testing.assert_close(layer.state_dict(), pair[0].state_dict())
    assert layer.num_batches_tracked == 0


def test_infinite_and_nan_values_stay_in_their_images(backend):
    layer = make(2, affine=True, track_running_stats=True)
    x, dy = draw(2, False)
    x[0, 1, 2, 3], x[1, 2, 3, 4] = float("inf"), float("nan")
    check_layer(layer, x, dy)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_state_dict_is_torchs_in_both_directions(cls, affine, track):
    ours = cls(7, affine=affine, track_running_stats=track, activation="relu")
    theirs = getattr(nn, cls.__name__)(7, affine=affine, track_running_stats=track)
    assert isinstance(ours, type(theirs))
    assert cls.__name__ == type(theirs).__name__
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for tensor in [*theirs.parameters(), *theirs.buffers()]:
        tensor.data.copy_(torch.rand_like(tensor.float()).add_(1).to(tensor.dtype))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_defaults_repr_and_copies():
    plain, torchs = InstanceNorm2d(7), nn.InstanceNorm2d(7)
    assert repr(plain) == repr(torchs)
    layer = make(2, affine=True, order="act_norm")
    assert repr(layer).endswith("activation='leaky_relu', negative_slope=0.2, order='act_norm')")
    x, _ = draw(2, False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(layer(x), other(x))
        assert repr(layer) == repr(other)


def test_autocast_is_torchs(device):
    x = torch.randn(2, 7, 5, 5, device=device)
    for cast in (torch.bfloat16, torch.float16):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            layer = InstanceNorm2d(7, affine=True, activation="relu").to(device)
            with torch.autocast(device, cast):
                assert layer(x.to(dtype)).dtype == twin(layer)(x.to(dtype)).dtype


X = torch.zeros(2, 7, 4, 4)
ERRORS = {
    "one position": (lambda layer: layer(torch.zeros(2, 7, 1, 1)), {}),
    "dimensions": (lambda layer: layer(torch.zeros(2, 7, 4)[0]), {}),
    "channels": (lambda layer: layer(torch.zeros(2, 8, 4, 4)), {"affine": True}),
    "channels in evaluation": (
        lambda layer: layer.eval()(torch.zeros(2, 8, 4, 4)),
        {"track_running_stats": True},
    ),
}


@pytest.mark.filterwarnings("ignore:input's size")
@pytest.mark.parametrize(("call", "options"), ERRORS.values(), ids=ERRORS)
def test_errors_are_torchs(backend, call, options):
    with pytest.raises((ValueError, RuntimeError)) as torchs:
        call(nn.InstanceNorm2d(7, **options))
    with pytest.raises(torchs.type):
        call(InstanceNorm2d(7, activation="relu", **options))


def test_other_channels_than_named_only_warn_without_parameters():
    with pytest.warns(UserWarning, match="does not match num_features"):
        assert InstanceNorm2d(3)(X).shape == X.shape


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "activation must be one of", {"activation": "gelu"}),
        (ValueError, "order must be one of", {"order": "both"}),
        (ValueError, "eps must be positive", {"eps": 0.0}),
        (ValueError, "either both be None", {"running_mean": torch.zeros(7)}),
        (RuntimeError, "to be defined when", {"use_input_stats": False}),
        (RuntimeError, "running_mean should contain 7 elements not 1",
         {"running_mean": torch.zeros(1), "running_var": torch.ones(7)}),
        (RuntimeError, "weight", {"weight": torch.ones(1)}),
        (RuntimeError, "weight", {"weight": torch.ones(7, dtype=torch.float64)}),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(error, message, options):
    with pytest.raises(error, match=message):
        instance_norm_act(X, **options)


@pytest.mark.parametrize(
    ("dims", "channels_last", "dynamic"),
    [
        (1, False, True), (2, True, True), (2, True, False),
        *(pytest.param(3, last, True, marks=pytest.mark.slow) for last in (False, True)),
    ],
)  # fmt: skip
def test_compiles_whole_with_backward(backend, dims, channels_last, dynamic):
    layer = make(dims, affine=True, track_running_stats=True)
    plain = copy.deepcopy(layer)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=dynamic)
    counts = []
    for images in (4, 7, 9, 11):
        x, dy = draw(dims, channels_last, images=images)
        x.requires_grad_()
        results = []
        for module in (compiled, plain):
            layer.zero_grad(), plain.zero_grad()
            y = module(x)
            results.append((y, *torch.autograd.grad(y, x, dy)))
        torch.testing.assert_close(results[0], results[1])
        counts.append(graphs.frame_count)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    if dynamic:
        assert counts[-1] == counts[-2], counts  # a graph for any number of images


@pytest.mark.parametrize(("dims", "channels_last"), [(1, False), (2, True), (3, True)])
def test_exports_any_batch_without_writes(backend, dims, channels_last):
    layer = make(dims, affine=True).eval()
    x, _ = draw(dims, channels_last)
    dynamic = ({0: torch.export.Dim("images", min=2, max=64)},)
    program = torch.export.export(layer, (x,), dynamic_shapes=dynamic)
    assert not program.graph_signature.buffers_to_mutate
    other, _ = draw(dims, channels_last, images=5)
    torch.testing.assert_close(program.module()(other), layer(other))


@fuzz
def test_drawn_inputs(backend, draw):
    """Any shape, strides, dtypes and options, against torch's pair in float64."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = [max(1, size) for size in draw_shape(draw, 3, 5)]
    if math.prod(shape[2:]) == 1:
        shape[2] = 2
    act = ActivationConfig(
        draw(st.sampled_from(list(ACTIVATIONS))),
        draw(st.sampled_from([0.2, 0.0, 1.5])),
        draw(st.sampled_from(["norm_act", "act_norm"])),
    )
    momentum, eps = draw(st.sampled_from([0.1, 0.0, 1.0])), draw(st.sampled_from([1e-5, 0.8]))
    x = draw_tensor(draw, torch.randn(shape) + draw(st.sampled_from([0.0, 30.0])), dtype)
    dy = draw_tensor(draw, torch.randn(shape), dtype, expand=True)
    wide = draw(st.sampled_from([torch.promote_types(dtype, torch.float32), dtype]))
    weight, bias, mean, var = (draw_tensor(draw, torch.rand(shape[1]) + 0.1, wide) for _ in "wbmv")
    if draw(st.booleans()):
        mean = var = None

    bounds = NormBounds(x, weight, bias, act, eps=eps, splits=shape[0])
    of_buffers = [b for b in bounds.running_average(mean, var, momentum) if b is not None]
    y, dx, *_ = check(
        backend, ours, torchs, [x, mean, var, weight, bias, dy, momentum, eps, act],
        [bounds.y(), *bounds.backward(dy), *of_buffers],
        written=(1, 2), summed=math.prod(shape) // shape[1],
    )  # fmt: skip
    assert_laid_out_like(x, y, dx)


def ours(x, mean, var, weight, bias, dy, momentum, eps, act):
    """Return y and the gradients of x, weight and bias."""
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = instance_norm_act(x, mean, var, weight, bias, True, momentum, eps, **act._asdict())
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)


def torchs(x, mean, var, weight, bias, dy, momentum, eps, act):
    """Return the same of torch's pair."""
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    norm = nn.functional.instance_norm
    y = act.after(norm(act.before(x), mean, var, weight, bias, True, momentum, eps))
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)
