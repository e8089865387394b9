"""The layers keep torch's habits: state, pickling, compilation, errors."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conftest import missing
from oracle import check_layer, twin
from torch import nn
from torch.library import opcheck

import ganfast
from ganfast.functional import batch_norm_act
from ganfast.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d

CLASSES = [BatchNorm1d, BatchNorm2d, BatchNorm3d]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_state_dict_is_torchs_in_both_directions(cls, affine, track):
    ours = cls(7, affine=affine, track_running_stats=track, activation="relu")
    theirs = twin(ours)[0]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for tensor in [*theirs.parameters(), *theirs.buffers()]:
        tensor.data.copy_(torch.rand_like(tensor.float()).add_(1).to(tensor.dtype))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


def test_old_checkpoint_without_num_batches_tracked_loads():
    ours = BatchNorm2d(3, activation="relu")
    state = ours.state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    BatchNorm2d(3).load_state_dict(state)


@pytest.mark.parametrize(("ours", "theirs"), [(c, getattr(nn, c.__name__)) for c in CLASSES])
def test_is_torchs_class_by_type_and_name(ours, theirs):
    layer = ours(3, activation="relu")
    assert isinstance(layer, theirs)
    assert type(layer).__name__ == theirs.__name__


def test_repr_is_torchs_and_names_the_activation():
    plain, fused = BatchNorm2d(3), BatchNorm2d(3, activation="leaky_relu", negative_slope=0.2)
    assert repr(plain) == repr(nn.BatchNorm2d(3))
    assert repr(fused) == repr(plain)[:-1] + ", activation='leaky_relu', negative_slope=0.2)"
    assert "order='act_norm'" in repr(BatchNorm2d(3, activation="relu", order="act_norm"))
    assert "splits=2" in repr(BatchNorm2d(3, splits=2))


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_copies_compute_the_same(how):
    layer = BatchNorm2d(3, activation="leaky_relu", negative_slope=0.3, order="act_norm", splits=2)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    elif how == "deepcopy":
        other = copy.deepcopy(layer)
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(layer(x), other(x))
    assert repr(layer) == repr(other)


def test_state_from_before_the_keywords_unpickles():
    layer = BatchNorm2d(3)
    state = {k: v for k, v in layer.__dict__.items() if k not in ("activation", "order", "splits")}
    other = BatchNorm2d.__new__(BatchNorm2d)
    other.__setstate__(state)
    assert other(torch.randn(4, 3, 2, 2)).shape == (4, 3, 2, 2)


def test_hooks_run():
    layer, seen = BatchNorm2d(3, activation="relu"), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, y: seen.append(y.min().item() >= 0))
    layer(torch.randn(4, 3, 2, 2))
    assert seen == ["before", True]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_compiles_whole_with_backward(backend, training, dynamic):
    layer = BatchNorm2d(6, activation="leaky_relu", negative_slope=0.2).train(training)
    plain = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (4, 7, 9):
        x = torch.randn(batch, 6, 5, 5, requires_grad=True)
        results = []
        for module in (compiled, plain):
            layer.zero_grad(), plain.zero_grad()
            y = module(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), x)))
        torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def test_exports_in_evaluation_without_writes(backend):
    layer = BatchNorm2d(6, activation="relu").eval()
    program = torch.export.export(layer, (torch.randn(4, 6, 5, 5),))
    assert not program.graph_signature.buffers_to_mutate
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_functional_call(backend):
    layer = BatchNorm2d(6, activation="relu").eval()
    weight = torch.full((6,), 2.0)
    x = torch.randn(4, 6, 5, 5)
    y = torch.func.functional_call(layer, {"weight": weight}, (x,))
    torch.testing.assert_close(y, 2 * layer(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize(
    ("channels_last", "training"),
    [
        (True, True), (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_opcheck(backend, channels_last, training):
    x = torch.randn(4, 6, 5, 3, requires_grad=True)
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    vectors = [torch.rand(6, requires_grad=True), torch.rand(6, requires_grad=True)]
    buffers = [torch.zeros(6), torch.ones(6)]
    act = ("leaky_relu", 0.2, "norm_act")
    ops = torch.ops.ganfast
    if training:
        count = torch.tensor(0)
        args = (x, *vectors, *buffers, count, 0.1, 1e-5, *act, 2)
        opcheck(ops.batch_norm_act_train.default, args)
        stats = ops.batch_norm_act_train(*args)[1]
    else:
        args = (x, *vectors, *buffers, 1e-5, *act)
        opcheck(ops.batch_norm_act_eval.default, args)
        stats = ops.batch_norm_act_eval(*args)[1]
    dy = torch.randn_like(x).requires_grad_()
    args = (dy, x, vectors[0], stats, 1e-5, training, *act, True, True)
    opcheck(ops.batch_norm_act_backward.default, args)
    upstream = (torch.randn_like(x), torch.randn(6), None)
    args = (*upstream, dy, x, vectors[0], stats, 1e-5, training, *act)
    opcheck(ops.batch_norm_act_double_backward.default, args)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, in make_dual
def test_forward_mode_is_refused_not_wrong():
    layer, x = BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    with pytest.raises(NotImplementedError), torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (BatchNorm2d(3), torch.randn(4, 3, 5)),
        (BatchNorm1d(3), torch.randn(4, 3, 5, 5)),
        (BatchNorm3d(3), torch.randn(4, 3, 5, 5)),
        (BatchNorm2d(3), torch.randn(1, 3, 1, 1)),
        (BatchNorm1d(3), torch.randn(1, 3)),
        (BatchNorm2d(3), torch.randn(4, 5, 2, 2)),
        (BatchNorm2d(3), torch.randint(9, (4, 3, 2, 2))),
        (BatchNorm2d(3).double(), torch.randn(4, 3, 2, 2)),
        (BatchNorm2d(3), torch.randn(4, 3, 2, 2).double()),
        (BatchNorm2d(3).bfloat16(), torch.randn(4, 3, 2, 2).half()),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_input_raises_what_torch_raises(backend, layer, x, training):
    pair = twin(layer)[0].train(training)
    try:
        pair(x)
    except (ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        with pytest.raises(type(error)):
            layer.train(training)(x)
    else:
        layer.train(training)(x)


def test_messages_name_what_was_given():
    x = torch.randn(4, 3, 2, 2)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        BatchNorm1d(3)(torch.randn(1, 3))
    with pytest.raises(ValueError, match=r"splits=3 for a batch of 4"):
        BatchNorm2d(3, splits=3)(x)
    with pytest.raises(ValueError, match=r"Expected more than 1 value .* in 4 splits"):
        BatchNorm1d(3, splits=4)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="'gelu'"):
        BatchNorm2d(3, activation="gelu")
    with pytest.raises(ValueError, match="'backwards'"):
        BatchNorm2d(3, order="backwards")
    with pytest.raises(ValueError, match="splits must be at least 1, got 0"):
        BatchNorm2d(3, splits=0)
    with pytest.raises(ValueError, match="num_batches_tracked"):
        batch_norm_act(x, torch.zeros(3), torch.ones(3), training=True, momentum=None)
    with pytest.raises(RuntimeError, match="running_var must be defined in evaluation mode"):
        batch_norm_act(x, torch.zeros(3), None)
    with pytest.raises(ValueError, match=r"\(N, C, ...\), got \(4,\)"):
        batch_norm_act(torch.randn(4), None, None, training=True)
    with pytest.raises(RuntimeError, match="weight should contain 3 elements not 5"):
        batch_norm_act(x, None, None, torch.ones(5), training=True)
    with pytest.raises(ValueError, match="eps must be positive"):
        batch_norm_act(x, None, None, training=True, eps=0.0)


def test_public_names():
    assert {"backend", "functional", "nn"} <= set(ganfast.__all__)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_layer_as_it_leaves_torchs(backend, dtype):
    # torch's BatchNorm is on no autocast list: it computes in the dtype that it is given.
    layer = BatchNorm2d(6, activation="leaky_relu")
    pair = twin(layer)
    for given in (torch.float32, dtype):
        x = torch.randn(8, 6, 5, 5).to(given)
        with torch.autocast("cpu", dtype):
            ours, theirs = layer(x), pair(x)
        assert ours.dtype == theirs.dtype == given
        tolerance = 4 * torch.finfo(given).eps
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["wgan-gp", "r1"])
def test_gradient_penalties_equal_torchs(backend, kind):
    def critic(fused):
        torch.manual_seed(1)
        if fused:
            middle = [BatchNorm2d(8, activation="leaky_relu", negative_slope=0.2)]
        else:
            middle = [nn.BatchNorm2d(8), nn.LeakyReLU(0.2)]
        return nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), *middle, nn.Conv2d(8, 1, 4)).double()

    results = []
    for fused in (True, False):
        model = critic(fused)
        torch.manual_seed(2)
        x = torch.randn(6, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        norm = dx.flatten(1).norm(dim=1)
        penalty = ((norm - 1) ** 2).mean() if kind == "wgan-gp" else norm.square().mean()
        penalty.backward()
        results.append([penalty.detach(), x.grad, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        if ours is None or theirs is None:
            # No penalty depends on a bias: the gradient is absent from one, zero in the other.
            assert all(gradient is None or not gradient.any() for gradient in (ours, theirs))
        else:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap runs sample by sample
def test_vmap_in_evaluation():
    layer = BatchNorm2d(3, activation="relu").eval()
    x = torch.randn(5, 4, 3, 2, 2)
    torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(t) for t in x]))


def test_functional_gradients():
    if not ganfast.ops.extension.is_loaded():
        missing("native", "torch.func refuses the Python autograd function")
    layer = BatchNorm2d(3, activation="relu").eval()
    x = torch.randn(4, 3, 2, 2)
    pair = twin(layer)
    ours = torch.func.grad(lambda t: layer(t).square().sum())(x)
    theirs = torch.func.grad(lambda t: pair(t).square().sum())(x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_ten_million_values_a_channel(backend, device):
    layer = BatchNorm2d(1, activation="leaky_relu").to(device)
    x = torch.randn(10, 1, 1000, 1000, device=device) + 3
    check_layer(layer, x, torch.randn_like(x))
