"""The GAN losses keep torch's habits: errors, derivatives of any order, compilation, bits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import missing
from test_gan_loss import DTYPES, LABELLED, LOSSES, by_form, leaf, run, scores, script_discriminator
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import ganfast
from ganfast.functional import gan_discriminator_loss, gan_generator_loss
from ganfast.nn import GANLoss


def test_wrong_arguments(backend, device):
    x = torch.rand(4, 3, device=device)
    for kind in ("vanilla", "BCE", "", None):
        with pytest.raises(ValueError, match="kind must be one of 'bce', 'hinge'"):
            gan_discriminator_loss(x, x, kind=kind)
        with pytest.raises(ValueError, match="kind"):
            gan_generator_loss(x, kind=kind)
        with pytest.raises(ValueError, match="kind"):
            GANLoss(kind)
    for kind in ("hinge", "wasserstein"):
        for label in ({"real_label": 0.9}, {"fake_label": 0.1}):
            with pytest.raises(ValueError, match="no labels"):
                gan_discriminator_loss(x, x, kind=kind, **label)
            with pytest.raises(ValueError, match="no labels"):
                GANLoss(kind, **label)
        with pytest.raises(ValueError, match="no labels"):
            gan_generator_loss(x, kind=kind, real_label=0.9)
    for label in (-0.1, 1.1, float("nan"), float("inf")):
        for name in ("real_label", "fake_label"):
            for from_logits in (True, False):
                with pytest.raises(ValueError, match=r"\[0, 1\]"):
                    gan_discriminator_loss(x, x, from_logits=from_logits, **{name: label})
            with pytest.raises(ValueError, match=r"\[0, 1\]"):
                GANLoss(**{name: label})
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            gan_generator_loss(x, real_label=label)
    with pytest.raises(ValueError, match="even batch"):
        gan_discriminator_loss(x[:3], splits=2)
    with pytest.raises(ValueError, match="even batch"):
        gan_discriminator_loss(x[0, 0], splits=2)
    with pytest.raises(ValueError, match="leave fake out"):
        gan_discriminator_loss(x, x, splits=2)
    with pytest.raises(ValueError, match="generated"):
        gan_discriminator_loss(x)
    for splits in (0, 3, -1):
        for fake in (None, x):
            with pytest.raises(ValueError, match="splits must be 1 or 2"):
                gan_discriminator_loss(x, fake, splits=splits)
    for other in (x.double(), x.bfloat16()):
        for pair in ((x, other), (other, x)):
            with pytest.raises(RuntimeError, match="dtype"):
                gan_discriminator_loss(*pair)


@pytest.mark.parametrize("bad", [-0.1, 1 + 2.0**-23, float("nan"), float("inf")])
@pytest.mark.parametrize("size", [1, 17, 4097, 70001])
def test_out_of_range_is_an_error(backend, device, bad, size):
    if device == "cuda":
        pytest.skip("on a GPU nobody looks: it would stop the device")
    for position in {0, size // 2, size - 1}:
        x, good = (scores("probabilities", (size,)) for _ in range(2))
        x[position] = bad
        for pair in ((x, good), (good, x)):
            with pytest.raises(RuntimeError):
                gan_discriminator_loss(*pair, from_logits=False)
            with pytest.raises(RuntimeError):
                gan_discriminator_loss(torch.cat(pair), from_logits=False, splits=2)
        with pytest.raises(RuntimeError):
            gan_generator_loss(x, from_logits=False)


def ways_to_call(form, real, fake):
    """The three ways to hand over scores: a function, its tensors."""
    options = LOSSES[form]
    both = torch.cat([real.flatten()[:6], fake.flatten()[:6]])
    return [
        (lambda r, f: gan_discriminator_loss(r, f, **options), (real, fake)),
        (lambda x: gan_discriminator_loss(x, splits=2, **options), (both,)),
        (lambda f: (gan_generator_loss(f, **options),), (fake,)),
    ]


@by_form
def test_gradcheck(backend, device, form):
    # Far from the ends of probabilities, from the corners of the hinge, and on both sides of them.
    if form == "probabilities":
        values = torch.rand(2, 6, dtype=torch.float64) * 0.8 + 0.1
    else:
        values = torch.tensor([[-3.0, -1.2, -0.5, 0.3, 0.8, 1.5], [2.0, -1.7, 1.3, 0.0, -0.9, 0.6]])
    real, fake = values.to(device, torch.float64)
    for function, inputs in ways_to_call(form, real, fake):
        inputs = [leaf(x) for x in inputs]
        assert gradcheck(lambda *xs, f=function: f(*xs)[0], inputs)
        assert gradgradcheck(lambda *xs, f=function: f(*xs)[0], inputs)


@by_form
def test_second_derivative_matches_the_script(backend, device, form):
    real, fake = scores(form, (9, 57), device), scores(form, (31,), device)
    results = []
    for function in (
        lambda r, f: gan_discriminator_loss(r, f, **LOSSES[form])[0],
        lambda r, f: script_discriminator(r, f, form)[0],
    ):
        pair = [leaf(real), leaf(fake)]
        # A power of the loss, for two of the kinds are straight lines.
        first = torch.autograd.grad(function(*pair).pow(3), pair, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        results.append((*first, *torch.autograd.grad(penalty, pair)))
    torch.testing.assert_close(*results)


@by_form
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(backend, device, form, channels_last):
    real, fake = scores(form, (4, 3, 5, 2), device), scores(form, (2, 3, 4, 4), device)
    if channels_last:
        real, fake = (x.to(memory_format=torch.channels_last) for x in (real, fake))
    real.requires_grad_()
    fake.requires_grad_()
    dloss = torch.tensor(1.75, device=device, requires_grad=True)
    labels = (0.9, 0.1) if form in LABELLED else (1.0, -1.0)
    ops = torch.ops.ganfast
    for scores_given, splits in (((real, fake), 1), ((real, None), 2), ((real, None), 1)):
        args = (*scores_given, form, *labels, splits)
        opcheck(ops.gan_loss.default, args)
        both = scores_given[1] is not None
        for needed in [(True, True), (False, True)] if both else [(True, False)]:
            opcheck(ops.gan_loss_backward.default, (dloss, *args, *needed))


@by_form
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_with_backward(backend, device, form, dynamic):
    criterion = GANLoss(**LOSSES[form])
    ways = [
        criterion.discriminator,
        lambda x: criterion.discriminator(x, splits=2),
        lambda x: (criterion.generator(x),),
    ]
    for number, function in enumerate(ways):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for batch in (4, 8, 10):
            inputs = [scores(form, (batch, 5), device) for _ in range(2 if number == 0 else 1)]
            torch.testing.assert_close(run(compiled, *inputs), run(function, *inputs))


class Ops(TorchDispatchMode):
    """Remember the names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@by_form
@pytest.mark.parametrize("way", [0, 1, 2])
def test_one_op_each_way(backend, device, form, way):
    """Nothing else runs: no tensor is filled with a label and nothing waits for the device."""
    real, fake = scores(form, (8, 5), device), scores(form, (6, 5), device)
    function, inputs = ways_to_call(form, real, fake)[way]
    inputs = [leaf(x) for x in inputs]
    with Ops() as forward:
        loss = function(*inputs)[0]
    assert forward.names == ["ganfast::gan_loss"]
    dloss = torch.ones_like(loss)
    with Ops() as backward:
        torch.autograd.grad(loss, inputs, dloss)
    assert backward.names == ["ganfast::gan_loss_backward"]


@pytest.mark.parametrize("options", [*LOSSES.values(), {"real_label": 0.9, "fake_label": 0.1}])
def test_module(backend, device, options):
    criterion = GANLoss(**options)
    assert not list(criterion.parameters())
    assert not criterion.state_dict()
    values = {"kind": "bce", "from_logits": True, "real_label": 1.0, "fake_label": 0.0} | options
    kind = values.pop("kind")
    settings = ", ".join(f"{name}={value}" for name, value in values.items())
    assert repr(criterion) == f"GANLoss({kind!r}, {settings})"
    real, fake = (torch.rand(6, 5, device=device) for _ in range(2))
    expected = gan_discriminator_loss(real, fake, **options)
    generator_options = {n: o for n, o in options.items() if n != "fake_label"}
    for same in (criterion, pickle.loads(pickle.dumps(criterion)), copy.deepcopy(criterion)):
        assert type(same) is GANLoss
        assert repr(same) == repr(criterion)
        for one, other in zip(same.discriminator(real, fake), expected, strict=True):
            assert torch.equal(one, other)
        split = same.discriminator(torch.cat([real, fake]), splits=2)
        torch.testing.assert_close(split, expected)
        assert torch.equal(same.generator(fake), gan_generator_loss(fake, **generator_options))


@by_form
def test_autocast_changes_nothing(backend, device, form):
    for dtype in DTYPES:
        real, fake = scores(form, (9, 7), device, dtype), scores(form, (31,), device, dtype)
        for function, inputs in ways_to_call(form, real, fake):
            plain = run(function, *inputs)
            with torch.autocast(device, dtype=torch.bfloat16):
                cast = run(function, *inputs)
            torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@by_form
def test_same_bits_every_run(backend, device, form):
    real, fake = scores(form, (300, 301), device), scores(form, (4097,), device)
    for function, inputs in ways_to_call(form, real, fake):
        first = run(function, *inputs)
        for _ in range(3):
            for name, value in run(function, *inputs).items():
                assert torch.equal(value, first[name]), name


@by_form
def test_bits_do_not_depend_on_threads(several_threads, form):
    # Of torch's own sums they do, which the eager kernels use.
    if not torch._C._dispatch_has_kernel_for_dispatch_key("ganfast::gan_loss", "CPU"):
        missing("native", ganfast.backend.explain("cpu"))
    real, fake = scores(form, (300_000,)), scores(form, (200_001,))
    ways = [*ways_to_call(form, real, fake)]
    ways[1] = (ways[1][0], (real,))
    many = [run(function, *inputs) for function, inputs in ways]
    torch.set_num_threads(1)
    try:
        one = [run(function, *inputs) for function, inputs in ways]
    finally:
        torch.set_num_threads(several_threads)
    for first, second in zip(many, one, strict=True):
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


@by_form
def test_uninitialised_memory_is_never_read(backend, device, form):
    real, fake = scores(form, (6, 3, 7, 9), device), scores(form, (4, 3, 5, 5), device)
    real = real.to(memory_format=torch.channels_last)
    for function, inputs in ways_to_call(form, real, fake):
        plain = run(function, *inputs)
        torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
        try:
            assert torch.empty(4).isnan().all()
            filled = run(function, *inputs)
        finally:
            torch.use_deterministic_algorithms(False)
        for name, value in plain.items():
            assert torch.equal(value, filled[name]), name
