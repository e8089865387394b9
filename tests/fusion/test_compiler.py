"""The backend "ganfast" of torch.compile: the right pairs are fused, and nothing else changes."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import logging
import shutil
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import missing
from gan_models import MODELS, dcgan_discriminator
from paths import ROOT
from torch import nn
from twins import assert_equal_training, draw

import ganfast
from ganfast.fusion.graph import _warn_of_double_backward, _warn_once, compile_fused, fuse_graph
from ganfast.ops import batch_norm_act

INSTANCE_NORM = ganfast.functional.instance_norm_act
FUSED = (batch_norm_act.train, batch_norm_act.evaluate, INSTANCE_NORM)
LOSSES = (
    ganfast.functional.binary_cross_entropy,
    ganfast.functional.binary_cross_entropy_with_logits,
)


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Captured:
    """Compile with an inner backend that keeps the rewritten graphs."""

    def __init__(self, inner="aot_eager"):
        self.inner, self.graphs = inner, []

    def __call__(self, function, **options):
        return torch.compile(function, backend=compile_fused, options={"inner": self.keep})

    def keep(self, graph_module, inputs):
        self.graphs.append(graph_module)
        return torch._dynamo.lookup_backend(self.inner)(graph_module, inputs)

    def calls(self, *functions):
        """Return how often the functions are called, for each graph."""
        return [sum(n.target in functions for n in g.graph.nodes) for g in self.graphs]


def compare(function, *inputs, inner="aot_eager", **tolerance):
    """Compare a compiled function with itself: results and gradients; return the graphs."""
    captured, results = Captured(inner), []
    for call in (captured(function), function):
        given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        y = call(*given)
        ys = y if isinstance(y, tuple) else (y,)
        gradients = torch.autograd.grad(sum(t.sin().sum() for t in ys), given, allow_unused=True)
        results.append((ys, gradients))
    torch.testing.assert_close(*results, **tolerance)
    return captured


@pytest.mark.parametrize(
    ("style", "inner"),
    [*((style, "aot_eager") for style in MODELS), ("mlp", "eager"), ("functional", "eager")],
)
def test_compiled_models_train_as_before(style, inner):
    style = MODELS[style]
    twin = draw(style.make)
    model = copy.deepcopy(twin)
    captured = Captured(inner)
    assert_equal_training(model, twin, style.shape, captured(model))
    # The graph of training and that of evaluation.
    assert captured.calls(*FUSED) == [style.compile] * 2
    assert captured.calls(batch_norm_act.train, INSTANCE_NORM)[0] == style.compile
    assert captured.calls(batch_norm_act.train)[1] == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # inductor's own, in torch 2.11
@pytest.mark.parametrize("style", ["mlp", pytest.param("functional", marks=pytest.mark.slow)])
def test_through_inductor(style):
    if not (shutil.which("g++") or shutil.which("clang++")):
        missing("inductor", "needs a C++ compiler")
    style = MODELS[style]
    twin = draw(style.make)
    model = copy.deepcopy(twin)
    compiled = torch.compile(model, backend=compile_fused, options={"inner": "inductor"})
    assert_equal_training(model, twin, style.shape, compiled)


def test_batches_of_any_size():
    model = dcgan_discriminator().double()
    captured = Captured()
    compiled = captured(model)
    twin = copy.deepcopy(model)
    for batch in (4, 7, 9, 5):
        x = torch.randn(batch, 3, 32, 32, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    assert captured.calls(*FUSED) == [2, 2]  # one graph for the first size, one for all others


def test_a_discriminator_called_twice_before_one_backward():
    twin = draw(dcgan_discriminator)
    model = copy.deepcopy(twin)
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64, generator=generator)
    for m, call in ((model, Captured()(model)), (twin, twin)):
        (call(pair[0]).log().mean() + (1 - call(pair[1])).log().mean()).backward()
        m.gradients = [p.grad for p in m.parameters()]
    torch.testing.assert_close(model.gradients, twin.gradients)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def norm(x, **options):
    return F.batch_norm(x, None, None, training=True, **options)


def view_of_the_output(x):
    y = norm(x)
    rows = y.view(-1)
    y.relu_()
    return rows.cos()


def changed_for_another_reader(x):
    y = norm(x)
    z = F.leaky_relu(y, 0.2, True)
    return torch.cat([y, z], 1)


def view_behind_the_activation(x):
    y = norm(x)
    y.relu_()
    rows = y.view(-1)
    return rows.cos(), y.sin()


def features(x):
    found = []
    for slope in (0.1, 0.2):
        x = norm(x)
        found.append(x)
        x = F.leaky_relu(x, slope, True)
    return tuple(found)


def read_before_the_activation(x):
    y = norm(x)
    z = y.cos()
    return torch.relu_(y) + y * z.detach()


def without_gradient(x):
    y = norm(x)
    with torch.no_grad():
        z = F.relu(y)
    return y * 0 + z if y is z else z + x


def dropouts(x):
    y = F.dropout(norm(x), 0.0)
    y = F.dropout1d(F.alpha_dropout(y, 0.3, False), 0.3, training=False, inplace=True)
    return F.relu(y)


def dropout_on_a_skip(x):
    y = norm(x)
    z = F.relu(F.dropout(y, 0.5, False), inplace=True)
    return torch.cat([y, z])


def input_changed_between(x):
    x = x * 2
    y = norm(x)
    x = x.add(1)
    return F.relu(y) * x


def statistics_returned(x):
    mean, var = x.detach().mean((0, 2)), x.detach().square().mean((0, 2))
    y = torch.batch_norm(x, None, None, mean, var, True, 0.2, 1e-3, False)
    return torch.relu(y), mean, var


PAIRS = {
    # A function of one tensor, and how many pairs it has.
    "keywords": (lambda x: F.leaky_relu(input=norm(x), negative_slope=0.3, inplace=False), 1),
    "torch.batch_norm": (statistics_returned, 1),
    "weight and bias": (
        lambda x: F.leaky_relu_(F.batch_norm(x, None, None, x[0, :, 0], x[1, :, 0], True), 0.7),
        1,
    ),
    "statistics are given": (
        lambda x: F.batch_norm(x, x.detach().mean((0, 2)), x[0, :, 0].detach().square()).relu(),
        1,
    ),
    "two, one after the other": (lambda x: F.relu(norm(F.relu_(norm(x)))), 2),
    "input changed between": (input_changed_between, 1),
    "eps": (lambda x: F.relu(norm(x, eps=0.8)), 1),
    "default slope": (lambda x: F.leaky_relu(norm(x)), 1),
    "another reader": (lambda x: (lambda y: torch.cat([y, y.relu()]))(norm(x)), 0),
    "changed for another reader": (changed_for_another_reader, 1),
    "view of the output": (view_of_the_output, 0),
    "view behind the activation": (view_behind_the_activation, 1),
    "features": (features, 2),
    "read before the activation": (read_before_the_activation, 0),
    "activation without gradient": (without_gradient, 0),
    "in place as an argument": (lambda x: (lambda y: (F.relu(y, True), y))(norm(x)), 1),
    "not in place, said aloud": (lambda x: (lambda y: (F.relu(y, False), y))(norm(x)), 0),
    "dropouts that do nothing": (dropouts, 1),
    "a dropout that does nothing on a skip": (dropout_on_a_skip, 1),
    "a dropout": (lambda x: F.relu(F.dropout(norm(x), 1.0)), 0),
    "both are returned": (lambda x: (lambda y: (y, F.relu(y)))(norm(x)), 0),
    "two activations": (lambda x: (lambda y: F.relu(y) * F.leaky_relu(y, 0.2))(norm(x)), 0),
    "tanh": (lambda x: norm(x).tanh(), 0),
    "scaled": (lambda x: F.relu(2 * norm(x)), 0),
    "negative slope": (lambda x: F.leaky_relu(norm(x), -0.2), 0),
    "nothing behind": (norm, 0),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs(case):
    function, count = PAIRS[case]
    captured = compare(function, torch.randn(6, 3, 4, dtype=torch.float64))
    assert captured.calls(*FUSED) == [count]


def test_in_a_transform_nothing_is_fused():
    def sample(x):
        return F.relu(norm(x)), F.binary_cross_entropy_with_logits(x, x.detach().sigmoid())

    captured = compare(torch.func.vmap(sample), torch.randn(2, 6, 3, 4))
    assert captured.calls(*FUSED, *LOSSES) == [0]


def bce(p, t, **options):
    return F.binary_cross_entropy(p, t, **options)


def logits_changed(z, t):
    z = z * 2
    p = torch.sigmoid(z)
    z.add_(1)
    return bce(p, t) + z.sum()


def probabilities_changed(z, t):
    p = torch.sigmoid(z.detach())
    p.clamp_(0.4, 0.6)
    return bce(p, t)


def view_changed(z, t):
    p = torch.sigmoid(z.detach())
    p.view(-1).mul_(0.5)
    return bce(p, t)


def read_later(z, t):
    p = z.sigmoid()
    return bce(p, t), p.mean()


LOSS_GRAPHS = {
    # A function of logits and labels, how many losses it has, and how many of them on logits.
    "sigmoid": (lambda z, t: bce(torch.sigmoid(z), t), 1, 1),
    "module": (lambda z, t: nn.BCELoss(reduction="sum")(nn.Sigmoid()(z), t), 1, 1),
    "views": (lambda z, t: bce(z.sigmoid().view(2, -1).flatten().unsqueeze(1), t[:, None]), 1, 1),
    "weight": (lambda z, t: bce(z.sigmoid(), t, weight=t.detach(), reduction="none"), 1, 1),
    "legacy reduction": (lambda z, t: bce(F.sigmoid(z), t, size_average=False), 1, 1),
    "read later": (read_later, 1, 1),
    "with logits": (F.binary_cross_entropy_with_logits, 1, 1),
    "positive weight": (
        lambda z, t: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=z.dtype))(z, t), 1, 1,
    ),
    "probabilities": (lambda z, t: bce(z.sigmoid() * 0.5, t), 1, 0),
    "arguments": (
        lambda z, t: F.binary_cross_entropy(z / 20 + 0.5, t, None, None, None, "sum"), 1, 0,
    ),
    "logits changed": (logits_changed, 1, 0),
    "probabilities changed": (probabilities_changed, 1, 0),
    "view changed": (view_changed, 1, 0),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("case", LOSS_GRAPHS)
def test_losses(case):
    function, count, on_logits = LOSS_GRAPHS[case]
    logits = torch.linspace(-9, 9, 8, dtype=torch.float64)
    labels = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    captured = compare(function, logits, labels, rtol=1e-9, atol=1e-12)
    assert captured.calls(*LOSSES) == [count]
    assert captured.calls(LOSSES[1]) == [on_logits]
    assert captured.calls(F.binary_cross_entropy) == [0]


def test_the_sigmoid_of_integers_stays():
    logits, labels = torch.linspace(-9, 9, 8), torch.linspace(0.1, 0.9, 8)
    captured = compare(lambda z, t: bce(z.long().sigmoid(), t), logits, labels)
    assert captured.calls(*LOSSES) == [1]
    assert captured.calls(LOSSES[1]) == [0]


def test_where_the_sigmoid_is_1_the_logits_are_exact():
    logits = torch.tensor([40.0], requires_grad=True)
    loss = Captured()(lambda z: bce(z.sigmoid(), torch.zeros(1)))(logits)
    loss.backward()
    assert loss == 40
    assert logits.grad == 1


def test_the_log_says_what_was_done(caplog):
    model = nn.ModuleDict({"first": nn.BatchNorm1d(3), "second": nn.BatchNorm1d(3)})

    def forward(x):
        return model["second"](F.relu(model["first"](x))).tanh()

    with caplog.at_level(logging.INFO, "ganfast.fusion.graph"):
        Captured()(forward)(torch.randn(4, 3))
    assert caplog.messages == ["1 pair(s) and 0 loss(es) fused, 1 left (second: followed by tanh)"]


def test_reports_name_the_layers():
    reports = []
    model = dcgan_discriminator()
    torch.compile(model, backend=lambda g, inputs: reports.append(fuse_graph(g)) or g.forward)(
        torch.randn(2, 3, 32, 32)
    )
    assert [tuple(layer) for layer in reports[0].fused] == [
        ("main.3", 8, "leaky_relu", 0.2, "norm_act"),
        ("main.6", 16, "leaky_relu", 0.2, "norm_act"),
    ]


def warnings_of(caplog):
    records = [r for r in caplog.records if r.name == "ganfast.fusion.graph"]
    return [r.message for r in records if r.levelno == logging.WARNING]


NOTHING_FUSED = {
    "a reader": (
        nn.BatchNorm1d,
        nn.Tanh,
        "fused in a graph of this model: 0: followed by tanh",
    ),
    "no BatchNorm": (partial(nn.GroupNorm, 1), nn.ReLU, "model: it has no BatchNorm, Instance"),
}


@pytest.mark.parametrize("case", NOTHING_FUSED)
def test_nothing_fused_is_one_warning(case, caplog):
    norm, act, message = NOTHING_FUSED[case]
    model = nn.Sequential(norm(3), act(), nn.Conv1d(3, 3, 1))
    _warn_once.cache_clear()
    for batch in (4, 5, 6):
        torch.compile(model, backend=compile_fused)(torch.randn(batch, 3, 2))
    (warning,) = warnings_of(caplog)
    assert message in warning


def test_fused_layers_are_no_reason_to_warn(caplog):
    _warn_once.cache_clear()
    model = nn.Sequential(nn.Linear(3, 4), ganfast.nn.BatchNorm1d(4, activation="relu"))
    torch.compile(model, backend="ganfast")(torch.randn(5, 3))
    assert not warnings_of(caplog)


def test_a_gradient_penalty_through_inductor_names_the_way(caplog):
    _warn_once.cache_clear()
    x = torch.randn(4, 3, requires_grad=True)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    refusing = torch._dynamo.lookup_backend("aot_eager")  # as inductor, without its compiler
    compiled = torch.compile(model, backend=lambda g, i: _warn_of_double_backward(refusing(g, i)))
    compiled(x).sum().backward()
    assert not warnings_of(caplog)
    y = compiled(x)
    with contextlib.suppress(RuntimeError):  # torch refuses this backward, or the second one
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (warning,) = warnings_of(caplog)
    assert 'options={"inner": "eager"}' in warning
    (gradient,) = torch.autograd.grad(
        torch.compile(model, backend=compile_fused)(x).square().sum(), x, create_graph=True
    )
    gradient.square().sum().backward()  # on a CPU the inner backend is eager


def test_the_inner_backend_by_default(monkeypatch):
    seen = []

    def backend(name):
        return lambda graph_module, inputs, *rest, **named: (
            seen.append(name), graph_module.forward
        )[1]  # fmt: skip

    monkeypatch.setattr(torch._dynamo, "lookup_backend", backend)
    monkeypatch.setattr(torch._inductor, "compile", backend("inductor"))
    graph_module = torch.fx.symbolic_trace(nn.Identity())
    for device, options, mode in (
        ("cpu", None, None), ("meta", None, None), ("cpu", {"max_autotune": True}, None),
        ("cpu", None, "default"), ("meta", {"inner": "eager"}, None),
    ):  # fmt: skip
        compile_fused(graph_module, [3, torch.ones(2, device=device)], options=options, mode=mode)
    assert seen == ["eager", "inductor", "inductor", "inductor", "eager"]


def test_inner_backends_get_their_options(monkeypatch):
    seen = []

    def inner(graph_module, inputs, **named):
        seen.append(named)
        return graph_module.forward

    torch.compile(F.relu, backend=compile_fused, options={"inner": inner, "depth": 3})(
        torch.ones(1)
    )
    assert seen == [{"options": {"depth": 3}}]
    monkeypatch.setattr(
        torch._inductor, "compile", lambda *given: inner(*given[:2], given=given[2])
    )
    options = {"inner": "inductor", "max_autotune": False}
    torch.compile(F.relu, backend=compile_fused, options=options)(torch.ones(2, 2))
    assert seen[1] == {"given": {"max_autotune": False}}
    torch.compile(F.relu, backend=compile_fused, mode="max-autotune-no-cudagraphs")(
        torch.ones(1, 3)
    )
    assert seen[2]["given"]["max_autotune"] is True
    with pytest.raises(Exception, match="no_such_backend"):
        torch.compile(F.relu, backend=compile_fused, options={"inner": "no_such_backend"})(
            torch.ones(3, 1, 1)
        )


def test_the_entry_point():
    pyproject = (ROOT / "pyproject.toml").read_text()
    line = 'ganfast = "ganfast.fusion.graph:compile_fused"'
    assert f"[project.entry-points.torch_dynamo_backends]\n{line}" in pyproject
    points = importlib.metadata.entry_points(group="torch_dynamo_backends")
    for point in points.select(name="ganfast"):  # where this version is installed
        assert point.load() is compile_fused
        model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
        torch.compile(model, backend="ganfast", options={"inner": "eager"})(torch.randn(4, 3))


def test_import_registers_nothing():
    assert "ganfast.fusion.graph" in sys.modules
    registry = sys.modules["torch._dynamo.backends.registry"]
    assert registry._BACKENDS.get("ganfast") is None or registry._BACKENDS["ganfast"].value
