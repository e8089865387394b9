"""`fuse` with example inputs: it finds more pairs, and leaves those that would change outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from gan_models import MODELS, PerceptualFeatures, dcgan_generator
from torch import nn
from twins import assert_equal_training, draw

import ganfast
from ganfast import fuse, unfuse

LEFT = "fused, it would change what the example computes"


@pytest.mark.parametrize("style", MODELS)
def test_models_train_as_before_and_unfuse(style):
    style = MODELS[style]
    twin = draw(style.make)
    model = copy.deepcopy(twin)
    inputs = torch.randn(style.shape, dtype=torch.float64)
    report = fuse(model, example_inputs=inputs)
    assert len(report.fused) == style.fuse + style.example
    assert list(model.state_dict()) == list(twin.state_dict())
    assert_equal_training(model, twin, style.shape)
    model, twin = copy.deepcopy(model).train(), twin.train()
    assert_equal_training(model, twin, style.shape)
    unfuse(model.eval())
    assert repr(model) == repr(twin)


def test_values_that_others_read_are_kept():
    twin = draw(PerceptualFeatures)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    unaware, model = copy.deepcopy(twin), copy.deepcopy(twin)
    assert len(fuse(unaware).fused) == 2
    assert not torch.allclose(unaware(x), twin(x))
    report = fuse(model, example_inputs=x)
    assert [layer.name for layer in report.fused] == ["vgg.bn1"]
    assert report.skipped == [("vgg.bn2", LEFT)]
    twin.load_state_dict(model.state_dict())
    assert_equal_training(model, twin, x.shape)


class Returning(nn.Module):
    """The caller gets what the activation reads, or a view of it."""

    def __init__(self, inplace, view):
        super().__init__()
        self.norm, self.act = nn.BatchNorm1d(4), nn.ReLU(inplace)
        self.view = view

    def forward(self, x):
        y = self.norm(x)
        z = y.view(-1) if self.view else y
        return {"features": [z], "result": self.act(y) * 2}


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_returned_features(inplace, view):
    twin = draw(lambda: Returning(inplace, view))
    model = copy.deepcopy(twin)
    x = torch.randn(6, 4, dtype=torch.float64)
    report = fuse(model, example_inputs=x)
    # Behind an activation in place, the features are its output, views of it too.
    assert len(report.fused) == inplace
    torch.testing.assert_close(model(x), twin(x))


class Residual(nn.Module):
    """Adds in place to what the norm gives, so the activation reads the same object."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm1d(4), nn.ReLU()
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        y = self.norm(x)
        y += x.abs()
        return self.act(y)


def test_a_sum_in_place_is_another_value():
    report = fuse(Residual(), example_inputs=torch.randn(6, 4))
    # Seen as such, not only by what fusing it would change.
    assert (report.fused, report.skipped) == ([], [("norm", "outside nn.Sequential")])


def test_norms_that_begin_at_zero_hide_nothing():
    twin = PerceptualFeatures().double()
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)
    model = copy.deepcopy(twin)
    report = fuse(model, example_inputs=torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert report.skipped == [("vgg.bn2", LEFT)]
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


class Branching(nn.Module):
    """The activation has another input in one mode, or the BatchNorm another reader."""

    def __init__(self, act_alone=False, norm_alone=False):
        super().__init__()
        self.norm, self.act = nn.BatchNorm1d(4), nn.ReLU()
        self.act_alone, self.norm_alone = act_alone, norm_alone

    def forward(self, x):
        if self.act_alone and not self.training:
            return self.act(x)
        y = self.norm(x)
        if self.norm_alone and self.training:
            return y.sin()
        return self.act(y)


@pytest.mark.parametrize("branch", ["act_alone", "norm_alone", ""])
def test_both_modes_count(branch):
    twin = draw(lambda: Branching(**({branch: True} if branch else {})))
    model = copy.deepcopy(twin)
    x = torch.randn(6, 4, dtype=torch.float64)
    assert len(fuse(model, example_inputs=x).fused) == (not branch)
    assert_equal_training(model, twin, x.shape)


def test_a_layer_called_twice():
    class Twice(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x):
            for _ in range(2):
                x = self.layers[1](self.layers[0](x))
            return x

    twin = draw(lambda: Twice([nn.BatchNorm1d(4), nn.LeakyReLU(0.3)]))
    model = copy.deepcopy(twin)
    x = torch.randn(6, 4, dtype=torch.float64)
    assert len(fuse(model, example_inputs=x).fused) == 1
    assert_equal_training(model, twin, x.shape)


def test_dropouts_that_add_are_no_place_to_change_sides():
    class Between(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.norm, self.between, self.act = nn.BatchNorm1d(4), layer, nn.ReLU()

        def forward(self, x):
            return self.act(self.between(self.norm(x)))

    x = torch.randn(6, 4)
    assert len(fuse(Between(nn.Dropout(0.0)), example_inputs=x).fused) == 1
    assert not fuse(Between(nn.AlphaDropout(0.0)), example_inputs=x).fused
    assert not fuse(Between(nn.Dropout(0.1)), example_inputs=x).fused


def test_nothing_else_changes():
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.ModuleDict({"unused": nn.BatchNorm1d(2)})["unused"].eval())
    model = nn.Sequential(*layers)
    model[3].eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 3)
    before, random = x.clone(), torch.get_rng_state()
    fuse(model, example_inputs=(x,))
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model] == [True, True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model)
    assert "forward" not in vars(model[1])


def test_inputs_by_position_and_by_name():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.act = nn.BatchNorm1d(4), nn.ReLU()

        def forward(self, x, scale):
            return self.act(self.norm(x * scale))

    x = torch.randn(6, 4)
    for inputs in ((x, 2.0), {"x": x, "scale": torch.ones(())}):
        assert len(fuse(Conditional(), example_inputs=inputs).fused) == 1


def test_errors():
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match="one model, got 2"):
        fuse(nn.ReLU(), nn.ReLU(), example_inputs=x)

    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * self.calls

    counting = Counting(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))
    with pytest.raises(RuntimeError, match="must compute the same twice"):
        fuse(counting, example_inputs=x)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()).eval()
    with pytest.raises(RuntimeError):
        fuse(model, example_inputs=torch.randn(4, 2))
    assert [type(m) for m in model] == [nn.BatchNorm1d, nn.ReLU]
    assert not model.training
    assert not model[0]._forward_hooks


def test_several_models_have_one_report():
    generator, criterion = dcgan_generator(), nn.BCELoss()
    report = fuse(generator, MODELS["mlp"].make(), criterion)
    assert [layer.name for layer in report.fused] == [
        *("0.main.1", "0.main.4", "0.main.7"),
        *("1.3", "1.6"),
    ]
    assert report.losses == [("2", "BCELoss")]
    assert type(criterion) is ganfast.nn.BCELoss
    unfuse(generator, criterion)
    assert type(criterion) is nn.BCELoss
    assert repr(generator) == repr(dcgan_generator())


def test_the_report_ends_with_advice():
    text = str(fuse(nn.Sequential(MODELS["ctgan generator"].make(), nn.BatchNorm1d(6), nn.Tanh())))
    assert text.splitlines()[-3:] == [
        "0 pairs and 0 losses fused, 3 left as is",
        "2 layers may have an activation in a forward: try ganfast.fuse(model, example_inputs=x)",
        'or torch.compile(model, backend="ganfast"), with options={"inner": "eager"} for gradient '
        "penalties",
    ]
