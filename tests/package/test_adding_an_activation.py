"""Add ReLU6 to a copy of the repository by the steps of CONTRIBUTING.md, and use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from extension_copy import copy_repository

from ganfast.ops import triton_launch

ROWS = {
    "ganfast/activations.py": [
        (
            "ACTIVATIONS: dict[str | None, Activation] = {\n",
            """\
    "relu6": Activation(
        lambda z, slope: functional.relu6(z),
        lambda dy, z, slope: _aten.hardtanh_backward.default(dy, z, 0.0, 6.0),
        nn.ReLU6,
        functions=(functional.relu6, torch._C._nn.relu6, torch._C._nn.relu6_),
        kinks=(0.0, 6.0),
    ),
""",
        )
    ],
    "ganfast/ops/batch_norm_act/triton_forward.py": [
        (
            '    """Compute a(z)."""\n',
            """\
    if ACTIVATION == "relu6":
        return tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    el""",
        ),
        (
            'what torch\'s backward does."""\n',
            """\
    if ACTIVATION == "relu6":
        return tl.where((z <= 0) | (z >= 6), 0.0, dy)
    el""",
        ),
    ],
    "csrc/common/activation.h": [
        (
            "  X(leaky_relu, z > V{} ? z : z * slope, z > V{} ? dy : dy * slope)",
            """ \\
  X(relu6, z < V{} ? V{} : z > V{} + 6 ? V{} + 6 : z, z <= V{} || z >= V{} + 6 ? V{} : dy)""",
        ),
    ],
}
"""What to insert, and the text that it follows."""

CHECK = """
import sys
import torch
from torch import nn
from oracle import check_layer
import ganfast
from ganfast.fusion import fuse, stock
from ganfast.fusion.graph import fuse_graph


def fused_graph(graph_module, example_inputs):
    reports.append(fuse_graph(graph_module))
    return graph_module


backend = sys.argv[1]
assert ganfast.__file__.startswith(sys.argv[2]), ganfast.__file__
torch.manual_seed(0)
with ganfast.backend.use(backend):
    for order in ("norm_act", "act_norm"):
        layer = ganfast.nn.BatchNorm2d(5, activation="relu6", order=order)
        nn.init.constant_(layer.weight, 4.0)
        nn.init.constant_(layer.bias, 2.0)  # so that both kinks are passed
        x = 6 * torch.randn(6, 5, 4, 3)
        check_layer(layer, x, torch.randn_like(x))
        y = layer(x)
        assert order == "act_norm" or (y == 6).any() and (y == 0).any()
    few = 6 * torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    layer = ganfast.nn.BatchNorm1d(2, activation="relu6").double()
    assert torch.autograd.gradcheck(layer, few) and torch.autograd.gradgradcheck(layer, few)

    model = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU6())
    expected = model(x)
    reports = []
    # nn.ReLU6 itself calls hardtanh, which stays as it is.
    function = torch.compile(lambda x: nn.functional.relu6(model[0](x)), backend=fused_graph)
    torch.testing.assert_close(function(x), expected)
    reports.append(fuse(model))
    for report in reports:
        assert [layer.activation for layer in report.fused] == ["relu6"], report
    torch.testing.assert_close(model(x), expected)
    assert "activation='relu6'" in repr(model) and "slope" not in repr(model)
    assert isinstance(stock(model[0])[1], nn.ReLU6)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository with the new rows."""
    folder = tmp_path_factory.mktemp("repository").resolve()
    copy_repository(folder)
    for name, insertions in ROWS.items():
        text = (folder / name).read_text()
        for before, row in insertions:
            assert text.count(before) == 1, before
            text = text.replace(before, before + row).replace("    el    if", "    elif")
        (folder / name).write_text(text)
    return folder


def run(copy: Path, *command: str, **environment: str) -> None:
    """Run Python in the copy."""
    paths = (copy, copy / "tests", copy / "tests" / "ops")
    result = subprocess.run(
        [sys.executable, *command], cwd=copy, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "GANFAST_NATIVE": "0"}
        | environment,
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]


@pytest.mark.slow
def test_eager(copy):
    run(copy, "-c", CHECK, "eager", str(copy))
    run(copy, "-m", "pytest", "-q", "tests/ops/test_activations.py")


@pytest.mark.slow
def test_triton(copy):
    if reason := triton_launch.why_not("cuda"):
        pytest.skip(reason)
    run(copy, "-c", CHECK, "triton", str(copy), TRITON_INTERPRET="1")
