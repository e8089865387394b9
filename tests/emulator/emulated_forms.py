"""Every form that a CUDA kernel of ganfast comes in, forced on small shapes in the emulator.

``test_cuda_kernels.py`` runs this in a process where the emulated kernels serve the CPU.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

import pytest
import torch
from oracle import assert_within, check_layer, run
from test_batch_norm_act import DTYPES, ORDERS, check_centred, make
from test_gan_loss import LOSSES, by_form, check_discriminator, check_generator, scores

import ganfast
from ganfast.ops import batch_norm_act
from ganfast.verify.bounds import NormBounds

LIBRARY = ctypes.CDLL(os.environ["GANFAST_EMULATED_CUDA"])
LIBRARY.ganfast_cuda_configure.restype = ctypes.c_char_p
LIBRARY.ganfast_cuda_settings.restype = ctypes.c_char_p
# Clusters grow as far as they may, of blocks of one or two warps.
CLUSTER = "most_on_chip_threads=64 wanted_items=1 least_units_of_block=1 multiprocessors=1000"
# The settings that force a form, and the size of the clusters that then run.
ON_CHIP = {
    "without clusters": ("clusters=0", 1),
    "without clusters, 8 items": ("clusters=0 most_on_chip_threads=64 wanted_items=8", 1),
    "cluster of 1": (f"{CLUSTER} most_cluster=1", 1),
    "cluster of 2": (f"{CLUSTER} most_cluster=2", 2),
    "cluster of 4": (f"{CLUSTER} most_cluster=4", 4),
    "cluster of 8": (f"{CLUSTER} most_cluster=8", 8),
    "clusters of small blocks": (f"{CLUSTER} preferred_threads=32 most_cluster=2", 2),
}
MANY = "on_chip=0 least_items=1 fewest_items=1 multiprocessors=1000"
TWO_KERNELS = {
    "two kernels": "on_chip=0",
    "two kernels, many chunks": f"{MANY} threads=32",
    "two kernels, many chunks of two warps": f"{MANY} threads=64",
    "two kernels, three chunks": f"{MANY} most_chunks=3 threads=128",
    "two kernels, groups of chunks": f"{MANY} finish_items=0 threads=32 row_bytes=32",
    "two kernels without clusters": f"{MANY} clusters=0 threads=64",
}
FORMS = ON_CHIP | {name: (text, 1) for name, text in TWO_KERNELS.items()}
CHOSEN = ("cluster of 4", "two kernels, groups of chunks", "two kernels")
"""A form of each kernel, for `make test`; the others are slow."""
# Planes of whole words in each dtype; slices of a cluster that differ in size or are empty.
SHAPES = [(15, 3, 4, 4), (12, 5, 8, 8), (3, 2, 8, 40)]
ODD_SHAPES = [(6, 3, 5, 3), (12, 7), (9, 35, 3, 3), (3, 130, 4, 4)]


def launches():
    """Return how many kernels ran since the last call, and the largest cluster."""
    largest = ctypes.c_int()
    return LIBRARY.ganfast_emulated_launches(ctypes.byref(largest)), largest.value


def configure(text):
    """Choose settings; return what is wrong with them."""
    return LIBRARY.ganfast_cuda_configure(text.encode()).decode()


@pytest.fixture(autouse=True)
def settings():
    """Leave the settings as they were, and return the function that chooses them."""
    yield configure
    assert configure("") == ""


def chosen(forms):
    """Return the names of forms as parameters of a test."""
    return [pytest.param(name, marks=[] if name in CHOSEN else pytest.mark.slow) for name in forms]


@pytest.fixture(params=chosen(FORMS))
def form(request):
    assert configure(FORMS[request.param][0]) == ""
    launches()
    return request.param


def is_on_chip(form, x):
    in_words = x.stride(1) != 1 and x[0, 0].numel() * x.element_size() % 16 == 0
    served = in_words and x.data_ptr() % 16 == 0 and x.dtype != torch.float64
    return form in ON_CHIP and served


def expect(form, x):
    assert launches() == ((1, FORMS[form][1]) if is_on_chip(form, x) else (2, 1))


def check_forms(form, layer, x, dy):
    """Hold values to the rule, and the kernels that ran to the form."""
    launches()
    y = layer(x.requires_grad_())
    expect(form, x)
    torch.autograd.grad(y, (x, layer.weight), dy)
    expect(form, x)
    check_layer(layer, x, dy, rounds=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_forms(form, dtype, shape, splits):
    layer, x, dy = make(shape, "cpu", dtype, activation="leaky_relu", splits=splits)
    check_forms(form, layer, x, dy)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("splits", [1, 3])
def test_activations(form, order, activation, splits):
    layer, x, dy = make((12, 5, 8, 8), activation=activation, order=order, splits=splits)
    check_forms(form, layer, x, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + ODD_SHAPES, ids=str)
@pytest.mark.parametrize("form", chosen(TWO_KERNELS), indirect=True)
def test_channels_last_and_odd_shapes(form, dtype, shape):
    layer, x, dy = make(shape, "cpu", dtype, activation="relu", splits=3)
    check_forms(form, layer, x, dy)
    if x.dim() == 4:
        check_forms(form, layer, x.detach().to(memory_format=torch.channels_last), dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_that_begins_anywhere(form, dtype):
    layer, x, dy = make((12, 5, 8, 8), "cpu", dtype, activation="relu")
    x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert x.data_ptr() % 16
    check_forms(form, layer, x, dy)


FEW_SLOTS = "on_chip=0 multiprocessors=3 least_items=1 threads=32"
"""Fewer slots for blocks than chunks would be worth."""


@pytest.mark.parametrize(
    "text", [FEW_SLOTS, f"{FEW_SLOTS} finish_items=0", CLUSTER], ids=["chunks", "groups", "on chip"]
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(12, 3, 16, 16), (600, 7)], ids=str)
def test_splits_are_the_bits_of_separate_calls(text, shape, channels_last):
    configure(text)
    options = {"activation": "relu", "affine": False}
    layer, x, dy = make(shape, splits=3, **options)
    single, _, _ = make(shape, **options)
    if channels_last and x.dim() == 4:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    assert_same_bits(run(layer, x, dy), run(single, x, dy, splits=3))


def assert_same_bits(some, others):
    assert some.keys() == others.keys()
    for name, value in some.items():
        assert torch.equal(value, others[name]), name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_which_block_is_last(monkeypatch, form, dtype, channels_last):
    results = []
    for order in ("forwards", "backwards", "shuffled", "shuffled"):
        monkeypatch.setenv("GANFAST_EMULATION_ORDER", order)
        torch.manual_seed(0)
        layer, x, dy = make((12, 24, 8, 8), "cpu", dtype, activation="relu", splits=2)
        if channels_last:
            x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
        results.append(run(layer, x, dy))
        assert_same_bits(results[0], results[-1])


def test_gradients_of_parameters_alone_are_one_kernel(form):
    layer, x, dy = make((12, 5, 8, 8), activation="relu")
    y = layer(x)
    launches()
    torch.autograd.grad(y, (layer.weight, layer.bias), dy)
    assert launches()[0] == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("pdl=0 nonsense=1", "no setting 'nonsense'; it knows pdl, clusters, "),
        ("most_cluster=16", "most_cluster must be a power of two from 1 to 8, got '16'"),
        ("most_cluster=3", "got '3'"),
        ("threads", "threads must be .*, got ''"),
        ("pdl=yes", "pdl must be a number from 0 to 1, got 'yes'"),
    ],
)
def test_settings_that_do_not_exist_are_errors(text, error):
    before = LIBRARY.ganfast_cuda_settings()
    assert re.search(error, configure(text))
    assert LIBRARY.ganfast_cuda_settings() == before


def test_settings_come_from_the_environment():
    code = f"""
import ctypes
library = ctypes.CDLL({os.environ["GANFAST_EMULATED_CUDA"]!r})
library.ganfast_cuda_settings.restype = ctypes.c_char_p
print(library.ganfast_cuda_settings().decode())
"""
    result = subprocess.run(
        [sys.executable, "-c", f"import torch{code}"], capture_output=True, text=True, check=True,
        env=os.environ | {"GANFAST_CUDA": "pdl=0 wanted_items=8"},
    )  # fmt: skip
    assert {"pdl=0", "wanted_items=8", "clusters=1"} <= set(result.stdout.split())


def test_a_count_on_another_device_is_an_error():
    x, count = torch.randn(4, 3), torch.zeros((), dtype=torch.int64, device="meta")
    train = torch.ops.ganfast.batch_norm_act_train.default
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)  # else the fake kernel answers
    act = ("relu", 0.2, "norm_act", 1)
    with pytest.raises(RuntimeError, match="num_batches_tracked is on meta and the input on cpu"):
        train.redispatch(on_cpu, x, None, None, None, None, count, 0.1, 1e-5, *act)


@pytest.mark.parametrize("shape", [(12, 5, 8, 8), (12, 7)], ids=str)
def test_average_over_all_batches_takes_two_kernels(form, shape):
    layer, x, dy = make(shape, momentum=None, splits=2, activation="relu")
    layer(x)
    assert launches() == (2, 1)
    check_layer(layer, x, dy, rounds=3)


def test_evaluation_is_one_kernel(form):
    layer, x, dy = make((12, 5, 8, 8), activation="relu")
    layer.eval().requires_grad_(False)
    y = layer(x.requires_grad_())
    assert launches() == (1, 1)
    torch.autograd.grad(y, x, dy)
    assert launches() == (1, 1)
    check_layer(layer.requires_grad_(True), x, dy)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_values_far_from_zero(form, offset):
    layer, x, dy = make((12, 5, 8, 8), activation="leaky_relu")
    check_layer(layer, x * 1e-2 + offset, dy)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [True, False])
def test_the_error_does_not_grow_with_the_mean(form, order, training):
    check_centred((12, 5, 8, 8), "cpu", order, training)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("position", [0, 7, -1])
def test_values_that_are_not_finite(form, value, position):
    layer, x, dy = make((12, 5, 8, 8), activation="leaky_relu")
    x[position, 1, 0, 0] = value
    check_layer(layer, x, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("given", ["all", "ddx", "ddweight"])
@pytest.mark.parametrize("form", chosen(TWO_KERNELS), indirect=True)
def test_double_backward(form, dtype, channels_last, training, given):
    x, dy, ddx = (torch.randn(12, 10, 4, 4).to(dtype) for _ in range(3))
    if channels_last:
        x, dy, ddx = (t.to(memory_format=torch.channels_last) for t in (x, dy, ddx))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, ddweight, ddbias = (torch.randn(10, dtype=wide) for _ in range(3))
    if given != "all":
        ddbias = None
        ddx, ddweight = (ddx, None) if given == "ddx" else (None, ddweight)
    act = ("leaky_relu", 0.2, "norm_act")
    splits = 2 if training else 1
    stats = batch_norm_act.train(x, weight, None, None, None, None, 0.1, 1e-5, *act, splits)[1]
    given_to = lambda t: None if t is None else t.double()  # noqa: E731
    arguments = (ddx, ddweight, ddbias, dy, x, weight, stats)
    launches()
    ours = batch_norm_act.double_backward(*arguments, 1e-5, training, *act)
    assert launches() == (2, 1)
    with ganfast.backend.use("eager"):
        torchs = batch_norm_act.double_backward(*arguments, 1e-5, training, *act)
        exact = batch_norm_act.double_backward(*map(given_to, arguments), 1e-5, training, *act)
    bounds = NormBounds(x, None, None, act, stats=stats, splits=splits, training=training)
    bounds = bounds.double_backward(ddx, ddweight, ddbias, dy)
    for name, bound, *values in zip(
        ("d_dy", "d_x", "d_weight"), bounds, ours, torchs, exact, strict=True
    ):
        assert_within(bound, *values, name)


LOSS_FORMS = {
    "one block": "scores_of_one_block=1000000",
    "two kernels": "scores_of_one_block=1 scores_of_block=64",
    "two kernels, one chunk": "scores_of_one_block=1",
}


@by_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", chosen(LOSS_FORMS))
def test_losses(blocks, form, dtype):
    configure(LOSS_FORMS[blocks])
    real, fake = scores(form, (61, 9), "cpu", dtype), scores(form, (133,), "cpu", dtype)
    launches()
    ganfast.functional.gan_discriminator_loss(real, fake, **LOSSES[form])
    assert launches()[0] == (2 if blocks == "two kernels" else 1)
    check_discriminator(form, real, fake)
    check_generator(form, fake[1:])
