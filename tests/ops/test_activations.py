"""The table of activations: each row agrees with torch, and every backend has every row."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from paths import CSRC

from ganfast import ops
from ganfast.activations import ACTIVATIONS, ActivationConfig

SLOPE = 0.3
UNUSUAL = (-torch.inf, torch.inf, torch.nan, -0.0, 0.0, -1e-40, 1e-40)
Z = torch.tensor([*UNUSUAL, -30.0, -1.5, 0.7, 30.0])
ROWS = pytest.mark.parametrize("name", list(ACTIVATIONS))


@ROWS
def test_torchs_layer_and_functions_compute_the_same(name):
    row = ACTIVATIONS[name]
    y = row.apply(Z, SLOPE)
    torch.testing.assert_close(ActivationConfig(name, SLOPE).layer()(Z), y, equal_nan=True)
    slope = (SLOPE,) if row.takes_slope else ()
    for function in row.functions:
        call = getattr(torch.Tensor, function) if isinstance(function, str) else function
        torch.testing.assert_close(call(Z.clone(), *slope), y, equal_nan=True)


@ROWS
def test_the_gradient_is_torchs(name):
    row = ACTIVATIONS[name]
    kinks = Z.new_tensor(row.kinks)
    z = torch.cat((Z, kinks, kinks.nextafter(kinks + 1), kinks.nextafter(kinks - 1)))
    given = z.clone().requires_grad_()
    dy = torch.linspace(-2, 3, len(z))
    ActivationConfig(name, SLOPE).layer()(given).backward(dy)
    torch.testing.assert_close(row.gate(dy, z, SLOPE), given.grad, rtol=0, atol=0, equal_nan=True)


@ROWS
def test_it_is_linear_between_its_kinks(name):
    """The double backward takes a'' as 0."""
    row = ACTIVATIONS[name]
    ends = (-1e3, *row.kinks, 1e3)
    for begin, end in itertools.pairwise(ends):
        z = torch.linspace(begin, end, 1001)[1:-1]
        assert row.gate(torch.ones_like(z), z, SLOPE).unique().numel() == 1


def named_in_cpp() -> list[str]:
    """Return the rows of GANFAST_ACTIVATIONS(X)."""
    text = (CSRC / "common" / "activation.h").read_text()
    if "GANFAST_ACTIVATIONS(X)" in text:
        table = re.search(r"define GANFAST_ACTIVATIONS\(X\)((?:.*\\\n)*.*\n)", text)
        return re.findall(r"\bX\((\w+)", table[1])
    return re.search(r"enum class Activation \{(.*?)\}", text)[1].replace(" ", "").split(",")


def named_in_triton(function: str) -> list[str]:
    """Return the activations that a function of the Triton kernels tells apart."""
    text = (Path(ops.__file__).parent / "batch_norm_act" / "triton_forward.py").read_text()
    body = re.search(rf"def {function}\(.*?(?=\n@triton|\Z)", text, re.S)[0]
    assert "tl.static_assert" in body, "an unknown activation must not compile"
    names = re.findall(r"if ACTIVATION (?:== \"(\w+)\"|is None)", body)
    return [name or "none" for name in names]


def test_every_backend_has_every_row():
    names = {name or "none" for name in ACTIVATIONS}
    assert set(named_in_cpp()) == names
    for function in ("activate", "gate"):
        assert set(named_in_triton(function)) == names
