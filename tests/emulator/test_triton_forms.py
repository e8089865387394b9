"""Every form of batch_norm_act's Triton kernels on small shapes: a GPU or the interpreter."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICES, INTERPRETED
from oracle import assert_within, check_layer
from test_batch_norm_act import check_centred, make

import ganfast
from ganfast.verify.bounds import NormBounds

WHERE = [device for device in DEVICES if device == "cuda" or INTERPRETED]
if not WHERE:
    pytest.skip(
        "needs a GPU or TRITON_INTERPRET=1; test_triton.py runs it", allow_module_level=True
    )

# on_chip, tile, per_lane, programs, parts: the table's columns.
FORMS = {
    "on chip": None,
    "one part of one tile": (0, 2**14, 8, 1, 1),
    "one part of many tiles": (0, 64, 8, 1, 1),
    "parts of many tiles": (0, 32, 8, 10**6, 3),
    "many parts of one tile": (0, 64, 8, 10**6, 128),
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Force one form of the kernels, whatever the table says of a shape."""
    from ganfast.ops.batch_norm_act import triton, triton_tiling

    if FORMS[request.param] is not None:
        for op in triton_tiling.TABLE:
            monkeypatch.setitem(triton_tiling.TABLE, op, triton_tiling.Row(*FORMS[request.param]))
        monkeypatch.setattr(triton_tiling, "MERGED_SHARE", 0.1)
    for cache in (triton_tiling.plan, triton._call):
        cache.cache_clear()
    yield request.param
    for cache in (triton_tiling.plan, triton._call):
        cache.cache_clear()


def planned(form, x, op="train"):
    """Hold the form to what it is called."""
    from ganfast.ops.batch_norm_act.triton_tiling import plan

    P = x[0, 0].numel() if x.is_contiguous() else 1
    found = plan(op, x.itemsize, x.numel() // x.shape[1] // P, x.shape[1], P)
    expected = {
        "on chip": found.on_chip,
        "one part of one tile": (found.parts, found.tiles) == (1, 1),
        "one part of many tiles": found.parts == 1 and found.tiles > 1,
        "parts of many tiles": found.parts > 1 and found.tiles > 1,
        "many parts of one tile": found.parts > 1 and found.tiles == 1,
    }
    assert expected[form], found
    assert found.on_chip == (form == "on chip"), found


def inputs(layout, dtype, device, **options):
    """A layer and tensors of odd sizes: the last tile and the last channels are not full."""
    layer, x, dy = make((6, 5, 7, 3), device, dtype, activation="leaky_relu", **options)
    if layout == "channels_last":
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    return layer, x, dy


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_triton_in_every_form(form, device, layout, dtype):
    layer, x, dy = inputs(layout, dtype, device)
    planned(form, x)
    with ganfast.backend.use("triton"):
        check_layer(layer, x, dy)
        layer.eval()
        check_layer(layer, x, dy)


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_triton_with_splits_in_every_form(form, device, layout, momentum):
    options = {"splits": 3, "momentum": momentum, "order": "act_norm"}
    layer, x, dy = inputs(layout, torch.float32, device, **options)
    with ganfast.backend.use("triton"):
        check_layer(layer, x, dy, rounds=2)
    assert layer.num_batches_tracked == 6


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [(True, True, True), (True, False, False), (False, True, False)])
def test_triton_double_backward_in_every_form(form, device, layout, order, training, given):
    from ganfast.ops.batch_norm_act import double_backward, train

    _, x, dy = inputs(layout, torch.float32, device)
    planned(form, x, "double_backward")
    splits = 2 if training else 1
    weight, bias, p, q = torch.randn(4, 5, device=device)
    ddx = torch.randn_like(x)
    directions = [t if wanted else None for t, wanted in zip((ddx, p, q), given, strict=True)]
    act = ("leaky_relu", 0.2, order)
    _, stats = train(x, weight, bias, None, None, None, 0.1, 1e-5, *act, splits)

    def results(dtype):
        wide = [None if t is None else t.to(dtype) for t in (*directions, dy, x, weight, stats)]
        return double_backward(*wide, 1e-5, training, *act)

    with ganfast.backend.use("triton"):
        ours = results(torch.float32)
    with ganfast.backend.use("eager"):
        torchs, exact = results(torch.float32), results(torch.float64)
    bounds = NormBounds(x, None, None, act, stats=stats, splits=splits, training=training)
    bounds = bounds.double_backward(*directions, dy)
    for i, name in enumerate(("d_dy", "d_x", "d_weight")):
        assert_within(bounds[i], ours[i], torchs[i], exact[i], name)


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
@pytest.mark.parametrize("training", [True, False])
def test_triton_error_does_not_grow_with_the_mean(form, device, order, training):
    with ganfast.backend.use("triton"):
        check_centred((6, 5, 7, 3), device, order, training)


@pytest.mark.parametrize("device", WHERE)
def test_triton_gradients_by_finite_differences(form, device):
    kwargs = {"dtype": torch.float64, "device": device}
    x, weight = torch.randn(5, 2, 3, **kwargs), torch.randn(2, **kwargs)

    def function(x, weight):
        return ganfast.functional.batch_norm_act(
            x, None, None, weight, None, True, activation="leaky_relu", negative_slope=0.2
        )

    with ganfast.backend.use("triton"):
        assert torch.autograd.gradcheck(function, (x.requires_grad_(), weight.requires_grad_()))
