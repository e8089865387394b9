"""Tools of torch and others over fused models: each works, is refused, or is a limit in docs."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from paths import ROOT
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from twins import draw

import ganfast
from ganfast.fusion.placeholder import FusedActivation

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pair(act_norm=False):
    layers = [nn.BatchNorm2d(4), nn.LeakyReLU(0.2)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *(layers[::-1] if act_norm else layers))


def fused(act_norm=False):
    """Return a fused model and the same one unfused, with running statistics that matter."""
    twin = draw(lambda: pair(act_norm)).float()
    twin(3 * X + 1)
    model = copy.deepcopy(twin)
    assert len(ganfast.fuse(model, act_norm=True).fused) == 1
    return model, twin


class FrozenBatchNorm2d(nn.Module):
    """A BatchNorm with fixed statistics, as torchvision and timm have it."""

    def __init__(self, norm):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.eps = norm.eps

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def replaced(module, make):
    """Replace every BatchNorm by what ``make`` returns, as timm's and Lightning's converters do."""
    if isinstance(module, nn.BatchNorm2d):
        return make(module)
    for name, child in module.named_children():
        module.add_module(name, replaced(child, make))
    return module


def synchronised(norm):
    new = nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    new.load_state_dict(norm.state_dict())
    return new.train(norm.training)


def freeze_batch_norm_2d(model):
    return replaced(model, FrozenBatchNorm2d)


def convert_sync_batchnorm(model):
    return replaced(model, synchronised)


def folded(model):
    model[0], model[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()
    return model


REPLACE = {
    "torch's convert_sync_batchnorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's convert_sync_batchnorm": convert_sync_batchnorm,
    "timm's freeze_batch_norm_2d": freeze_batch_norm_2d,
    "fuse_conv_bn_eval": folded,
}
"""Tools that put something else where the BatchNorm was."""


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo asks every input of a graph
@pytest.mark.parametrize("tool", REPLACE)
def test_a_lost_activation_is_an_error_and_unfuse_brings_it_back(tool):
    model, twin = (m.eval() for m in fused())
    expected = REPLACE[tool](twin)(X)
    model = REPLACE[tool](model)
    with pytest.raises(
        RuntimeError, match=r"the LeakyReLU .* is lost: .*ganfast\.unfuse"
    ) as raised:
        model(X)
    assert "\n" not in str(raised.value)
    with pytest.raises(RuntimeError, match="is lost"):
        torch.compile(model, backend="eager")(X)
    with pytest.raises(RuntimeError, match="is lost"):
        torch.export.export(model, (X,))
    ganfast.unfuse(model)
    torch.testing.assert_close(model(X), expected)
    assert not any(isinstance(m, FusedActivation) for m in model.modules())


@pytest.mark.parametrize("tool", [tool for tool in REPLACE if tool != "fuse_conv_bn_eval"])
def test_the_same_where_the_activation_comes_first(tool):
    model, twin = (m.eval() for m in fused(act_norm=True))
    expected = REPLACE[tool](twin)(X)
    model = REPLACE[tool](model)
    with pytest.raises(RuntimeError, match="is lost"):
        model(X)
    ganfast.unfuse(model)
    torch.testing.assert_close(model(X), expected)


def pruned(model):
    prune.l1_unstructured(model[1], "weight", 0.5)
    return model


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrised(model):
    parametrize.register_parametrization(model[1], "weight", Doubled())
    return model


def prepared(model):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    return prepare_fx(model.eval(), get_default_qconfig_mapping(), (X,))


def called_functionally(model):
    tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
    return lambda x: functional_call(model, tensors, (x,))


def stacked(model):
    """Run two models as one, as an ensemble is; return the first one's output."""
    parameters, buffers = stack_module_state([model, copy.deepcopy(model)])
    base = copy.deepcopy(model).to("meta")
    run = torch.vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))
    return lambda x: run(parameters, buffers, x)[0]


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, X), file)
    file.seek(0)
    return torch.jit.load(file)


def wrapped(model):
    model[1] = torch.compile(model[1], backend="eager")
    return model


def extended(model):
    model.insert(0, nn.Identity())
    model.append(nn.Identity())
    return model


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=None)


def shared(model):
    return model.share_memory()


def hooked(model):
    for layer in model:
        layer.register_forward_hook(lambda module, args, output: output.clone())
        layer.register_full_backward_hook(lambda module, *gradients: None)
    return model


def in_a_new_sequential(model):
    return nn.Sequential(*model.children(), nn.Identity())


WORK = {
    "prune": pruned,
    "parametrize": parametrised,
    "torch.jit.trace": saved_and_loaded,
    "torch.fx.symbolic_trace": torch.fx.symbolic_trace,
    "prepare_fx": prepared,
    "functional_call": called_functionally,
    "vmap over stacked modules, evaluation": lambda model: stacked(model.eval()),
    "AveragedModel": averaged,
    "share_memory": shared,
    "hooks": hooked,
    "torch.compile of the BatchNorm": wrapped,
    "layers added": extended,
    "a new Sequential of the layers": in_a_new_sequential,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "torch.export": lambda model: torch.export.export(model.eval(), (X,)).module(),
}


@pytest.mark.filterwarnings("ignore")  # torch's tools are deprecated, and trace warns of branches
@pytest.mark.parametrize("tool", WORK)
def test_tools_that_work(tool):
    model, twin = fused()
    torch.testing.assert_close(WORK[tool](model)(X), WORK[tool](twin)(X))


def test_features_of_a_fused_model():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, twin = (m.eval() for m in fused())
    nodes = {"0": "conv", "2": "activated"}
    found, expected = (extraction.create_feature_extractor(m, nodes)(X) for m in (model, twin))
    torch.testing.assert_close(found, expected)


LIMITS = {
    "torch.jit.script": (torch.jit.script, "Unknown type annotation"),
    "vmap": (lambda model: stacked(model)(X), "Batching rule not implemented"),
}
"""Tools that raise, and what; docs/limits.md says so."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", LIMITS)
def test_tools_that_are_refused_stand_in_docs(tool):
    use, message = LIMITS[tool]
    with pytest.raises((RuntimeError, ValueError), match=message):
        use(fused()[0])
    assert f"`{tool}`" in (ROOT / "docs" / "limits.md").read_text()


def test_what_cannot_be_noticed_stands_in_docs():
    model, twin = (m.eval() for m in fused())
    conv, norm, act = model
    rebuilt = nn.Sequential(fuse_conv_bn_eval(conv, norm), act)  # the old Sequential is still whole
    assert not torch.allclose(rebuilt(X), twin(X))
    text = (ROOT / "docs" / "limits.md").read_text()
    assert "`fuse_conv_bn_eval`" in text
    assert "new `nn.Sequential`" in text
    assert "docs/limits.md" in (ROOT / "README.md").read_text()


def reloaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": reloaded,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_looks_for_its_own_batch_norm(how):
    model, twin = (m.eval() for m in fused())
    copied = COPIES[how](nn.ModuleDict({"inner": model}))["inner"]
    torch.testing.assert_close(copied(X), twin(X))
    nn.SyncBatchNorm.convert_sync_batchnorm(copied)
    with pytest.raises(RuntimeError, match="is lost"):
        copied(X)
    torch.testing.assert_close(model(X), twin(X))


def test_a_copied_layer_takes_no_other_with_it():
    model, _ = fused()
    assert b"Conv2d" not in pickle.dumps(model[1])
    memo = {}
    copy.deepcopy(model[1], memo)
    assert id(model[0].weight) not in memo


def test_another_layer_of_its_class_does_not_count():
    model, _ = fused()
    model[1] = type(model[1])(model[1].num_features)
    with pytest.raises(RuntimeError, match="is lost"):
        model(X)


def test_instance_norm_too():
    twin = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.ReLU())
    model = copy.deepcopy(twin)
    assert len(ganfast.fuse(model).fused) == 1
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(X), twin(X))
    torch.testing.assert_close(torch.compile(model, backend="eager")(X), twin(X))
    model[0] = nn.InstanceNorm2d(3)
    with pytest.raises(RuntimeError, match=r"ReLU .* into InstanceNorm2d is lost"):
        model(X)


def test_the_placeholder_is_no_parent():
    model, twin = fused()
    assert list(model[2].modules()) == [model[2]]
    assert [name for name, _ in model.named_modules()] == ["", "0", "1", "2"]
    assert list(model.state_dict()) == list(twin.state_dict())
    assert repr(model[2]) == "FusedActivation(LeakyReLU)"
    assert isinstance(model[2], nn.Identity)


def test_compiled_and_exported_models_look_once():
    model, _ = fused()
    explained = torch._dynamo.explain(model)(X)
    assert explained.graph_break_count == 0
    assert not [g for g in explained.out_guards if "_fused" in g.name]
    exported = torch.export.export(model.eval(), (X,))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets[:2] == ["aten.conv2d.default", "ganfast.batch_norm_act_eval.default"]
    assert len([t for t in targets if "getitem" not in t]) == 2


def test_unfuse_of_a_part_changes_nothing():
    model, twin = fused()
    with pytest.raises(RuntimeError, match="computes a LeakyReLU is not in this model"):
        ganfast.unfuse(model[2:])
    parametrised(model)
    with pytest.raises(RuntimeError, match="remove_parametrizations first"):
        ganfast.unfuse(model)
    torch.testing.assert_close(model(X), parametrised(twin)(X))


def test_ganfasts_own_converter_and_stock_layers():
    model, twin = fused()
    torch.testing.assert_close(ganfast.fusion.stock(model)(X), twin(X))
    ganfast.convert_sync_batchnorm(model)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(X), twin(X))
    ganfast.unfuse(model)
    assert type(model[1]) is ganfast.nn.SyncBatchNorm
    torch.testing.assert_close(model.eval()(X), twin.eval()(X))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no gloo")
def test_data_parallel_wrappers():
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        for wrap in (DistributedDataParallel, fully_shard):
            model, twin = fused()
            y = wrap(model)(X)
            torch.testing.assert_close(y, twin(X))
            y.sum().backward()
    finally:
        destroy_process_group()
