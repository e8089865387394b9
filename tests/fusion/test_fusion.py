"""`fuse` and `unfuse`: the model computes what it did, or is left alone with the reason said."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from gan_models import MODELS, dcgan_discriminator, dcgan_generator
from torch import nn
from twins import assert_equal_training, draw

import ganfast
from ganfast import fuse, unfuse


def block(norm=None, act=None):
    """Return a convolution and a pair, the smallest model with something to fuse."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4), act or nn.ReLU())


@pytest.mark.parametrize("act_norm", [False, True])
@pytest.mark.parametrize("style", MODELS)
def test_fused_models_train_as_before(backend, style, act_norm):
    style = MODELS[style]
    twin = draw(style.make)
    model = copy.deepcopy(twin)
    report = fuse(model, act_norm=act_norm)
    assert len(report.fused) == style.fuse + (style.act_norm if act_norm else 0)
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert len(report.fused) + len(report.skipped) == len(norms)
    assert_equal_training(model, twin, style.shape)


@pytest.mark.parametrize("style", MODELS)
def test_state_and_objects_stay(style):
    model = MODELS[style].make()
    before = model.state_dict()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    names = list(dict(model.named_modules(remove_duplicate=False)))
    fuse(model, act_norm=True)
    after = model.state_dict()
    assert list(after) == list(before)
    assert after._metadata == before._metadata
    assert list(dict(model.named_modules(remove_duplicate=False))) == names
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor is tensors[name]
    model.load_state_dict(before)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "in place": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize(
    ("style", "how"),
    # torch does not pickle parametrised convolutions.
    [
        (s, h)
        for s in MODELS
        for h in COPIES
        if s != "spectral norm" or h in ("in place", "deepcopy")
    ],
)
def test_unfuse_is_the_inverse(style, how):
    style = MODELS[style]
    twin = draw(style.make)
    model = copy.deepcopy(twin)
    original = {id(m) for m in model.modules()}
    fuse(model, act_norm=True)
    if style.fuse:
        assert repr(model) != repr(twin)
    with torch.no_grad():
        for p in [*model.parameters(), *twin.parameters()]:
            p.mul_(0.9)  # as if trained
    model.eval(), twin.eval()
    model = COPIES[how](model)
    tensors = dict(model.named_parameters())
    unfuse(model)
    assert repr(model) == repr(twin)
    theirs = list(twin.modules())
    for ours, other in zip(model.modules(), theirs, strict=True):
        assert type(ours) is type(other) or "parametrize" in type(ours).__module__
        assert vars(ours).keys() == vars(other).keys()
        assert ours.training == other.training
    if how == "in place":
        assert {id(m) for m in model.modules()} == original
    assert all(p is tensors[name] for name, p in model.named_parameters())
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_a_shared_activation_is_one_object_again():
    model = copy.deepcopy(MODELS["shared activation"].make())
    fuse(model)
    assert model.first[1] is model.act  # it follows no BatchNorm there
    assert type(model.second[2]) is nn.Identity
    model = copy.deepcopy(model)
    unfuse(model)
    assert model.second[2] is model.third[2] is model.act


def test_the_activation_is_no_child_of_the_fused_layer():
    model = block()
    fuse(model)
    assert [type(m) for m in model] == [nn.Conv2d, ganfast.nn.BatchNorm2d, nn.Identity]
    assert list(model[1].modules()) == [model[1]]
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_fusing_twice_changes_nothing():
    model = dcgan_generator()
    fuse(model)
    text = repr(model)
    report = fuse(model)
    assert not report.fused
    assert not report.skipped
    assert repr(model) == text
    unfuse(model)
    assert repr(model) == repr(dcgan_generator())
    unfuse(model)
    assert repr(model) == repr(dcgan_generator())


def test_mode_dtype_and_requires_grad_stay():
    model = block().double().eval()
    model[1].weight.requires_grad_(False)
    fuse(model)
    assert not model[1].training
    assert not model[2].training
    assert model[1].weight.dtype == torch.float64
    assert not model[1].weight.requires_grad
    model.train()
    unfuse(model)
    assert model[2].training


def test_an_optimizer_made_before_goes_on():
    model = draw(dcgan_discriminator)
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3) for m in (model, twin)]
    fuse(model)
    for _ in range(3):
        x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).log().sum().backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-9)
    assert not torch.equal(model.main[2].weight, dcgan_discriminator().main[2].weight)


def test_hooks_that_see_the_same_stay_and_run():
    model, seen = block(), []
    norm = model[1]
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    norm.register_state_dict_post_hook(lambda module, *rest: seen.append("state"))
    norm.weight.register_hook(lambda gradient: seen.append("gradient"))
    fuse(model)
    assert isinstance(model[1], ganfast.nn.BatchNorm2d)
    x = torch.randn(2, 3, 6, 6)
    model(x).sum().backward()
    model.state_dict()
    assert torch.equal(seen[0], model[0](x))
    assert seen[1:] == ["gradient", "state"]


def with_hook(module, register):
    getattr(module, f"register_{register}")(lambda *arguments: None)
    return module


def frozen_forward(module):
    module.forward = lambda x: x
    return module


FIRST_IN_PLACE = {
    "first": ((), 0),
    "after a view": ((nn.Flatten(0, 0),), 0),
    "after identity": ((nn.Identity(),), 0),
    "after a hooked convolution": ((with_hook(nn.Conv2d(3, 3, 1), "forward_hook"),), 0),
    "after a convolution": ((nn.Conv2d(3, 3, 1),), 1),
}


@pytest.mark.parametrize("case", FIRST_IN_PLACE)
def test_an_activation_that_changes_the_callers_tensor_stays(case):
    before, count = FIRST_IN_PLACE[case]
    model = nn.Sequential(*before, nn.LeakyReLU(0.2, inplace=True), nn.BatchNorm2d(3))
    twin = copy.deepcopy(model)
    report = fuse(model, act_norm=True)
    assert len(report.fused) == count
    if not count:
        assert "others may hold" in report.skipped[0][1]
    results = []
    for m in (model, twin):
        x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        results.append((m(x), x))
    torch.testing.assert_close(*results)
    not_in_place = nn.Sequential(nn.LeakyReLU(0.2), nn.BatchNorm2d(3))
    assert len(fuse(not_in_place, act_norm=True).fused) == 1


@pytest.mark.parametrize("register", ["forward_pre_hook", "forward_hook", "full_backward_hook"])
def test_hooks_see_other_tensors_where_the_activation_comes_first(register):
    norm = with_hook(nn.BatchNorm2d(3), register)
    report = fuse(nn.Sequential(nn.ReLU(), norm), act_norm=True)
    assert not report.fused
    assert "hook" in report.skipped[0][1]


def test_norm_act_wins():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    report = fuse(model, act_norm=True)
    assert [(layer.name, layer.order) for layer in report.fused] == [("0", "norm_act")]
    assert report.skipped == [("2", "last in its Sequential")]
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.LeakyReLU(0.1))
    (layer,) = fuse(model, act_norm=True).fused
    assert (layer.order, layer.activation, layer.negative_slope) == ("norm_act", "leaky_relu", 0.1)


class Labelled(nn.Sequential):
    """A Sequential in all but its class."""


def test_subclass_of_sequential_without_own_forward_is_fused():
    model = Labelled(*block())
    assert len(fuse(model).fused) == 1


def test_a_block_with_two_parents_counts_once():
    pair = block()
    report = fuse(nn.ModuleDict({"a": nn.Sequential(pair), "b": nn.Sequential(pair)}))
    assert [layer.name for layer in report.fused] == ["a.0.1"]


def test_ganfasts_own_layers():
    plain = ganfast.nn.BatchNorm2d(4, splits=2, order="act_norm")
    model = block(plain, nn.LeakyReLU(0.3))
    text = repr(model)
    twin = copy.deepcopy(model)
    assert len(fuse(model).fused) == 1
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(model(x), twin(x))
    assert model[1].splits == 2
    unfuse(model)
    assert repr(model) == text
    assert model[1].order == "act_norm"
    own = nn.Sequential(ganfast.nn.BatchNorm2d(4, activation="relu"), nn.ReLU())
    report = fuse(own)
    assert str(report).startswith("Nothing to fuse")
    unfuse(own)
    assert own[0].activation == "relu"


def test_losses():
    model = nn.ModuleDict(
        {
            "bce": nn.BCELoss(reduction="sum"),
            "logits": nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)),
            "hooked": with_hook(nn.BCELoss(), "forward_hook"),
            "replaced": frozen_forward(nn.BCELoss()),
            "trainable": nn.BCEWithLogitsLoss(),
            "other": nn.MSELoss(),
        }
    )
    model["trainable"].pos_weight = nn.Parameter(torch.ones(1))
    scores, target = torch.rand(5), torch.rand(5)
    before = [model[name](scores, target) for name in ("bce", "logits")]
    text = repr(model)
    report = fuse(model)
    assert report.losses == [("bce", "BCELoss"), ("logits", "BCEWithLogitsLoss")]
    reasons = dict(report.skipped)
    assert reasons == {
        "hooked": "has a hook",
        "replaced": "its forward was replaced",
        "trainable": "its weight is no buffer",
    }
    assert type(model["bce"]) is ganfast.nn.BCELoss
    assert type(model["logits"]) is ganfast.nn.BCEWithLogitsLoss
    torch.testing.assert_close([model[n](scores, target) for n in ("bce", "logits")], before)
    unfuse(model)
    assert type(model["bce"]) is nn.BCELoss
    assert type(model["logits"]) is nn.BCEWithLogitsLoss
    assert repr(model) == text
    assert type(unfused_alone(nn.BCELoss())) is nn.BCELoss
    assert type(unfused_alone(ganfast.nn.BCELoss())) is ganfast.nn.BCELoss


def unfused_alone(loss):
    fuse(loss)
    assert type(loss) is ganfast.nn.BCELoss
    unfuse(loss)
    return loss


def test_report_is_an_aligned_table():
    model = nn.Sequential(dcgan_discriminator(), MODELS["other followers"].make(), nn.BCELoss())
    report = fuse(model)
    lines = str(report).splitlines()
    assert repr(report) == str(report)
    assert lines[0] == "fused  0.main.3  8 channels, leaky_relu(0.2)"
    assert lines[3] == "left   1.1       followed by Dropout2d"
    assert lines[-1] == "2 pairs and 1 loss fused, 6 left as is"
    assert len({line.index(line.split()[2]) for line in lines[:-1]}) == 1
    name, channels, activation, slope, order = report.fused[0]
    assert (name, channels, activation) == ("0.main.3", 8, "leaky_relu")
    assert (slope, order) == (0.2, "norm_act")


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(), nn.ReLU()], ids=str)
def test_nothing_to_fuse_is_said_in_one_sentence(model):
    text = str(fuse(model))
    assert text.startswith("Nothing to fuse")
    assert "\n" not in text


def test_errors():
    for function in (fuse, unfuse):
        with pytest.raises(TypeError, match="Module, got list"):
            function([block()])
    model = block()
    fuse(model)
    with pytest.raises(RuntimeError, match="1: the Identity in its activation's slot"):
        unfuse(model[:2])
    assert model[1].activation == "relu"


def test_dcgan_trains_as_unfused(backend):
    """Both networks, 20 steps of the loop of pytorch/examples in float32, from one seed."""
    losses = []
    for fused in (False, True):
        torch.manual_seed(0)
        generator, discriminator = dcgan_generator(), dcgan_discriminator()
        criterion = nn.BCELoss()
        networks = nn.ModuleList([generator, discriminator, criterion])
        if fused:
            report = fuse(networks)
            assert (len(report.fused), len(report.losses)) == (5, 1)
        losses.append(train(generator, discriminator, networks[2]))
    ours, theirs = torch.tensor(losses[1]), torch.tensor(losses[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (theirs[0] - theirs[-1]).abs().max() > 0.05  # they learn something


def train(generator, discriminator, criterion):
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=0.0002, betas=(0.5, 0.999))
        for network in (discriminator, generator)
    ]
    real, fake = torch.ones(16), torch.zeros(16)
    losses = []
    for _ in range(20):
        images = torch.randn(16, 3, 32, 32).tanh()
        optimizers[0].zero_grad()
        loss_real = criterion(discriminator(images).view(-1), real)
        loss_real.backward()
        fakes = generator(torch.randn(16, 8, 1, 1))
        loss_fake = criterion(discriminator(fakes.detach()).view(-1), fake)
        loss_fake.backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        loss = criterion(discriminator(fakes).view(-1), real)
        loss.backward()
        optimizers[1].step()
        losses.append([(loss_real + loss_fake).item(), loss.item()])
    return losses
