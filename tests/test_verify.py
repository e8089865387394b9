"""`ganfast verify`: passes on what is right, and fails on what is not."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest import missing
from torch.library import Library

from ganfast import backend
from ganfast.bench import verify
from ganfast.bench.exactness import judge
from ganfast.bench.verify import CHECKS, DTYPES
from ganfast.cli import main
from ganfast.ops import _library


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_passes(backend, device, dtype):
    rows = list(verify(device=device, backends=[backend], dtypes=[dtype]))
    assert not [failure for row in rows for failure in row.failures]
    assert {row.op for row in rows} == set(CHECKS)
    assert all(row.results > 10 for row in rows)


def test_every_op_has_checks():
    ops = {re.sub("_(train|eval)$", "", name) for name in _library.eager_kernels}
    assert {name for name in ops if not name.endswith("_backward")} == set(CHECKS)


WRONG = {
    # A kernel made wrong in one place, and the op whose rows must fail for it.
    "batch_norm_act_train": ("batch_norm_act", lambda y, stats: (y * (1 + 1e-5), stats)),
    "batch_norm_act_backward": ("batch_norm_act", lambda dx, dw, db: (dx, dw, db * 1.001)),
    "batch_norm_act_double_backward": ("batch_norm_act", lambda dy, x, w: (dy, x + 1e-3, w)),
    "binary_cross_entropy": ("binary_cross_entropy", lambda y: y.nan_to_num(0.0)),
    "gan_loss": ("gan_loss", lambda loss, real, fake: (loss, fake, real)),
    "gan_loss_backward": ("gan_loss", lambda dreal, dfake: (dreal, -dfake)),
}


@pytest.fixture
def broken(request):
    """Put a wrong kernel of one op in front of the right one."""
    if "native" not in backend.available("cpu"):
        missing("native", "backend.use('eager') would put the right kernel back")
    name = request.param
    right, (_, wrong) = _library.eager_kernels[name], WRONG[name]

    def kernel(*arguments):
        results = right(*arguments)
        return wrong(*results) if isinstance(results, tuple) else wrong(results)

    library = Library("ganfast", "IMPL")
    library.impl(name, kernel, "CPU", allow_override=True)
    yield WRONG[name][0]
    library._destroy()


@pytest.mark.filterwarnings("ignore:(?s).*Overriding a previously registered kernel")
@pytest.mark.parametrize("broken", WRONG, indirect=True)
def test_a_wrong_kernel_fails(broken, capsys):
    # The choice "native" leaves the override in place.
    rows = list(verify(backends=["native"], dtypes=["float32"]))
    assert {row.op for row in rows if row.failures} == {broken}
    assert main(["verify", "--device", "cpu", "--backend", "native", "--dtype", "float32"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_the_command_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "found.json"
    command = ["verify", "--device", "cpu", "--backend", "eager", "--dtype", "float32"]
    assert main([*command, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "0 rows failed" in printed
    found = json.loads(path.read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert len(found["rows"]) == printed.count("PASS")
    assert main([*command, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == found["rows"]


def test_errors_say_what_to_do(tmp_path, capsys):
    assert main(["verify", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert main(["verify", "--device", "cpu", "--backend", "triton"]) == 2
    assert "triton" in capsys.readouterr().err
    command = ["verify", "--device", "cpu", "--backend", "eager", "--dtype", "float32"]
    assert main([*command, "--json", str(tmp_path / "no" / "such")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_rule():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    right = exact.float()
    assert judge("same", right, right, exact).passed
    assert not judge("off", right * (1 + 1e-6), right, exact).passed
    assert judge("off as torch is", right * (1 + 1e-6), right * (1 + 1e-6), exact).passed
    nan = torch.tensor([float("nan"), 2.0])
    assert judge("nan", nan, nan, nan.double()).passed
    assert not judge("lost nan", right, nan, nan.double()).passed
    infinite = torch.tensor([float("inf"), 2.0])
    assert not judge("sign", -infinite.abs(), infinite, infinite.double()).passed
