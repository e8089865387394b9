"""`ganfast verify`: passes on what is right, and fails on what is not."""

from __future__ import annotations

import importlib.util
import json
import re
import sys

import pytest
import torch
from conftest import missing
from torch import nn
from torch.library import Library

from ganfast import backend, fuse
from ganfast.cli import main
from ganfast.cli import verify as verify_command
from ganfast.ops import registry
from ganfast.verify import model as verify_models
from ganfast.verify import verify, verify_model
from ganfast.verify.exactness import judge
from ganfast.verify.runner import CHECKS, DTYPES, Check, Row


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_passes(backend, device, dtype):
    rows = list(verify(device=device, backends=[backend], dtypes=[dtype]))
    assert not [failure for row in rows for failure in row.failures]
    assert {row.op for row in rows} == set(CHECKS)
    assert all(row.results > 10 for row in rows)


def test_every_op_has_checks():
    ops = {re.sub("_(train|eval)$", "", name) for name in registry.eager_kernels}
    checked = {name for name in ops if not name.endswith("_backward")}
    assert checked | {"instance_norm_act"} == set(CHECKS)  # a layer on the op of another


NORMS = {"batch_norm_act", "instance_norm_act"}
WRONG = {
    # A kernel made wrong in one place, and whose rows must fail for it.
    "batch_norm_act_train": (NORMS, lambda y, stats: (y * (1 + 1e-5), stats)),
    "batch_norm_act_backward": (NORMS, lambda dx, dw, db: (dx, dw, db * 1.001)),
    "batch_norm_act_double_backward": (NORMS, lambda dy, x, w: (dy, x + 1e-3, w)),
    "binary_cross_entropy": ({"binary_cross_entropy"}, lambda y: y.nan_to_num(0.0)),
    "gan_loss": ({"gan_loss"}, lambda loss, real, fake: (loss, fake, real)),
    "gan_loss_backward": ({"gan_loss"}, lambda dreal, dfake: (dreal, -dfake)),
}


@pytest.fixture
def broken(request):
    """Put a wrong kernel of one op in front of the right one."""
    if "native" not in backend.available("cpu"):
        missing("native", "backend.use('eager') would put the right kernel back")
    name = request.param
    right, (_, wrong) = registry.eager_kernels[name], WRONG[name]

    def kernel(*arguments):
        results = right(*arguments)
        return wrong(*results) if isinstance(results, tuple) else wrong(results)

    library = Library("ganfast", "IMPL")
    library.impl(name, kernel, "CPU", allow_override=True)
    yield WRONG[name][0]
    library._destroy()


@pytest.mark.filterwarnings("ignore:(?s).*Overriding a previously registered kernel")
@pytest.mark.parametrize(
    "broken",
    [
        name if not name.endswith("_backward") else pytest.param(name, marks=pytest.mark.slow)
        for name in WRONG
    ],
    indirect=True,
)
def test_a_wrong_kernel_fails(broken, capsys):
    # The choice "native" leaves the override in place.
    rows = list(verify(backends=["native"], dtypes=["float32"]))
    assert {row.op for row in rows if row.failures} == broken
    assert main(["verify", "--device", "cpu", "--backend", "native", "--dtype", "float32"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_the_command_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "found.json"
    command = ["verify", "--device", "cpu", "--backend", "eager", "--dtype", "float32"]
    assert main([*command, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "0 rows failed" in printed
    machine, *rows = map(json.loads, path.read_text().splitlines())
    assert machine["machine"]["torch"] == torch.__version__
    assert len(rows) == printed.count("PASS")
    assert main([*command, "--json", "-"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [machine, *rows]


def test_a_row_is_known_when_its_layout_is_checked(monkeypatch):
    checked = []

    def checks(dtype, device):
        for layout, name in (("NC*", "one"), ("NC*", "two"), ("channels-last", "three")):
            yield Check(layout, name, lambda name=name: checked.append(name) or [])

    for op in list(CHECKS):
        monkeypatch.delitem(CHECKS, op)
    monkeypatch.setitem(CHECKS, "op", checks)
    rows = verify(backends=["eager"], dtypes=["float32"])
    assert next(rows).layout == "NC*"
    assert checked == ["one", "two"]
    assert [row.layout for row in rows] == ["channels-last"]


def test_a_stopped_command_has_written_what_it_found(tmp_path, monkeypatch, capsys):
    def stopped(**chosen):
        yield Row.of("op", "eager", "float32", "contiguous", [], [])
        assert "PASS" in capsys.readouterr().out
        machine, row = map(json.loads, path.read_text().splitlines())
        assert machine.keys() == {"machine"}
        assert row["op"] == "op"
        raise KeyboardInterrupt

    path = tmp_path / "found.jsonl"
    monkeypatch.setattr(verify_command, "verify", stopped)
    assert main(["verify", "--device", "cpu", "--json", str(path)]) == 130


def test_errors_say_what_to_do(tmp_path, capsys):
    assert main(["verify", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert main(["verify", "--device", "cpu", "--backend", "triton"]) == 2
    absent = "triton is not installed"  # as beside a torch without CUDA
    why = "'triton' has no kernels on cpu" if importlib.util.find_spec("triton") else absent
    assert why in capsys.readouterr().err
    command = ["verify", "--device", "cpu", "--backend", "eager", "--dtype", "float32"]
    assert main([*command, "--json", str(tmp_path / "no" / "such")]) == 2
    assert "cannot write" in capsys.readouterr().err


def small_model():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(nn.ReLU(inplace=True), *layers, nn.Dropout(0.5), nn.Tanh())


class ChangesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = small_model()

    def forward(self, x):
        return self.block(x.mul_(3))


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.LazyBatchNorm1d())


def scripted():
    return torch.jit.script(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))


def leaves():
    sys.exit(0)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Labels(nn.Module):
    def forward(self, x):
        return x.argmax(1)


def needs_argument(width):
    return nn.Linear(width, width)


def not_a_module():
    return [1, 2]


def command_for(model, *shapes):
    return ["verify", "--device", "cpu", "--model", f"test_verify:{model}", "--input", *shapes]


def test_a_model_passes(capsys):
    assert main(command_for("small_model", "4x3x6x6")) == 0
    printed = capsys.readouterr().out
    assert "fused  2  4 channels, leaky_relu(0.2)" in printed
    assert printed.count("PASS") == 13
    assert "0 rows failed" in printed


@pytest.mark.parametrize("dtype", DTYPES)
def test_models_of_every_dtype_pass(backend, dtype):
    rows = list(verify_model(small_model(), [(4, 3, 6, 6)], backends=[backend], dtypes=[dtype]))
    assert not [failure for row in rows for failure in row.failures]
    assert {row.layout for row in rows} == {"step 1", "step 2", "step 3", "evaluation"}
    assert {(row.dtype, row.backend) for row in rows} == {(dtype, backend)}


def test_the_model_is_not_changed_and_may_return_any_structure():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = small_model()
            self.unused = nn.Linear(2, 2)

        def forward(self, x, y):
            return {"a": self.block(x), "b": (y, y.argmax())}

    model = Two()
    text, state = repr(model), {k: v.clone() for k, v in model.state_dict().items()}
    rows = list(verify_model(model, [(4, 3, 6, 6), (5,)]))
    assert not any(row.failures for row in rows)
    assert rows[0].results == 2
    assert repr(model) == text
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def slope_lost(model):
    model[2].negative_slope = 0.2001


def eps_doubled(model):
    model[2].eps *= 2


def momentum_lost(model):
    model[2].momentum = 0.11


def wrong_in_evaluation(model):
    model[2].register_forward_pre_hook(lambda norm, args: None if norm.training else args[0] + 0.1)


def raising(model):
    model[2].register_forward_pre_hook(lambda *arguments: 1 / 0)


@pytest.mark.parametrize(
    ("wrong", "row"),
    [
        (slope_lost, "parameter gradient .* step 1"),
        (eps_doubled, "input gradient .* step 2"),
        (momentum_lost, "buffer .* step 3"),
        (wrong_in_evaluation, "output .* evaluation"),
        (raising, "output .* step 1"),
    ],
)
def test_a_model_fused_wrongly_fails(monkeypatch, capsys, wrong, row):
    monkeypatch.setattr(verify_models, "fuse", lambda model: (fuse(model), wrong(model)))
    assert main(command_for("small_model", "4x3x6x6")) == 1
    assert re.search(f"^{row} .* FAIL$", capsys.readouterr().out, re.MULTILINE)


def test_each_run_has_inputs_of_its_own(monkeypatch):
    assert not any(row.failures for row in verify_model(ChangesItsInput(), [(4, 3, 6, 6)]))

    def wrong(model):
        fuse(model)
        wrong_in_evaluation(model.block)

    monkeypatch.setattr(verify_models, "fuse", wrong)
    failed = [r.layout for r in verify_model(ChangesItsInput(), [(4, 3, 6, 6)]) if r.failures]
    assert failed == ["evaluation"]


def test_the_command_writes_what_it_found_of_a_model(capsys):
    assert main([*command_for("small_model", "4x3x6x6"), "--json", "-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 13


BAD_MODELS = {
    "small_model": ("4x3", "does not take an input of 4x3"),
    "Noisy": ("4x3", "forward is random"),
    "Labels": ("4x3", "no floating-point tensor"),
    "no_such_factory": ("4x3", "no_such_factory"),
    "needs_argument": ("4x3", "missing 1 required positional argument"),
    "not_a_module": ("4x3", "made a list, not an nn.Module"),
    "lazy": ("4x3", "1, a LazyLinear, has no shapes yet: run the model on a first batch"),
    "scripted": ("4x3", "the model is scripted: give the model before that"),
    "leaves": ("4x3", "SystemExit: 0"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("model", BAD_MODELS)
def test_bad_models_are_errors(model, capsys):
    shape, message = BAD_MODELS[model]
    assert main(command_for(model, shape)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no_such_module:net", "--input", "2x3"], "No module named 'no_such_module'"),
        (["--model", "test_verify", "--input", "2x3"], "must be MODULE:FACTORY"),
        (["--model", "test_verify:small_model"], "belong together"),
        (["--input", "2x3"], "belong together"),
        (["--model", "test_verify:small_model", "--input", "2x-3"], "2x-3"),
    ],
)
def test_bad_arguments_are_errors(arguments, message, capsys):
    assert main(["verify", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_networks.py").write_text(
        "from torch import nn\ndef net(): return nn.BatchNorm1d(3)\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    arguments = ["--model", "my_own_networks:net", "--input", "6x3"]
    assert main(["verify", "--device", "cpu", *arguments]) == 0
    assert sys.path == path


def test_the_rule():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    right, wrong = exact.float(), exact.float() * (1 + 1e-6)
    assert judge("same", right, right, exact, 0.0).passed
    assert not judge("off", wrong, right, exact, 0.0).passed
    assert not judge("off as torch is", wrong, wrong, exact, 0.0).passed
    assert judge("as bounded", wrong, right, exact, torch.tensor([1e-6, 2e-6])).passed
    assert not judge("by element", wrong, right, exact, torch.tensor([1.0, 0.0])).passed
    assert not judge("no bound", wrong, right, exact, torch.tensor([torch.nan, 1.0])).passed
    nan = torch.tensor([float("nan"), 2.0])
    assert judge("nan", nan, nan, nan.double(), 0.0).passed
    assert not judge("lost nan", right, nan, nan.double(), 0.0).passed
    assert not judge("new nan", nan, right, exact, 1.0).passed
    infinite = torch.tensor([float("inf"), 2.0])
    assert not judge("sign", -infinite.abs(), infinite, infinite.double(), 0.0).passed
