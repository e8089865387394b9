"""batch_norm_act on shapes and strides that nobody chose, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from oracle import check_layer

import ganfast
from ganfast.activation import ACTIVATIONS
from ganfast.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

LAYERS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
EXAMPLES = 150


@st.composite
def inputs(draw):
    """An input with any strides that slicing and permuting give, two or more values a channel."""
    splits = draw(st.sampled_from([1, 1, 2, 3]))
    batch = splits * draw(st.integers(1, 6))
    rest = draw(st.lists(st.integers(1, 20), max_size=3))
    shape = [batch, draw(st.integers(1, 70)), *rest]
    values = batch // splits
    for size in rest:
        values *= size
    hypothesis.assume(values > 1)
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2])) for _ in shape]
    torch.manual_seed(draw(st.integers(0, 2**31)))
    stored = torch.randn([shape[i] * steps[i] for i in order]).to(dtype)
    x = stored.permute([order.index(i) for i in range(len(shape))])
    x = x[tuple(slice(None, None, step) for step in steps)]
    assert list(x.shape) == shape
    layer = LAYERS[len(shape)](
        shape[1],
        activation=draw(st.sampled_from([None, "relu", "leaky_relu"])),
        negative_slope=draw(st.sampled_from([0.0, 0.2, 1.0, 1.5])),
        order=draw(st.sampled_from(["norm_act", "act_norm"])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.8])),
        momentum=draw(st.sampled_from([0.1, 0.0, None])),
        splits=splits,
    )
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    if dtype == torch.float64:
        layer = layer.double()
    training = splits > 1 or draw(st.booleans())
    return layer.train(training), x, torch.randn(shape).to(dtype)


@pytest.mark.parametrize("backend", ganfast.backend.available("cpu"))
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@hypothesis.given(case=inputs())
def test_any_shape_and_stride(backend, case):
    layer, x, dy = case
    # With few values a channel's variance, and with it every gradient, may be of any size, and the
    # terms of dx and of the sums cancel: a rounding is one of the terms, not of the result.
    dims = [d for d in range(x.dim()) if d != 1]
    u = x.double()
    if layer.order == "act_norm":
        u = ACTIVATIONS[layer.activation].apply(u, layer.negative_slope)
    var = torch.stack([chunk.var(dims, correction=0) for chunk in u.chunk(layer.splits)])
    rstd = ((var if layer.training else layer.running_var).min() + layer.eps).rsqrt().item()
    largest_dy, sum_dy = dy.abs().max().item(), dy.float().abs().sum(dims).max().item()
    operands = max(1.0, rstd * layer.weight.abs().max().item() * largest_dy, sum_dy)
    with ganfast.backend.use(backend):
        check_layer(layer, x, dy, operands=operands, same_layout=False)
