"""The binary cross-entropies keep torch's habits: errors, modules, autocast, compilation, bits."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conftest import missing
from oracle import assert_within
from test_binary_cross_entropy import (
    DTYPES,
    FORMS,
    REDUCTIONS,
    bounds,
    by_form,
    by_reduction,
    check,
    make,
    run,
    weights_of,
)
from torch import nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import ganfast
from ganfast import functional
from ganfast.nn import BCELoss, BCEWithLogitsLoss

CLASSES = {"probabilities": BCELoss, "logits": BCEWithLogitsLoss}


@pytest.mark.parametrize("size", [1, 17, 33, 4097, 70001])
@pytest.mark.parametrize("of", ["input", "target"])
def test_out_of_range_is_an_error(backend, device, size, of):
    if device == "cuda":
        pytest.skip("on a GPU nobody looks: it would stop the device")
    function = functional.binary_cross_entropy
    bad = [-0.1, -1e-30, 1 + 2.0**-23, 2.0, float("nan"), float("inf"), float("-inf")]
    for position in {0, size // 2, size - 1}:
        for value in bad if size < 1000 else bad[:1] + bad[4:5]:
            x, target = make("probabilities", (size,))
            (x if of == "input" else target)[position] = value
            for reduction in REDUCTIONS:
                with pytest.raises(RuntimeError):
                    function(x, target, reduction=reduction)
            if of == "input":
                with pytest.raises(RuntimeError):
                    function(x, 1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_of_range_is_an_error_in_every_dtype_and_layout(backend, dtype):
    x, target = make("probabilities", (3, 3, 5, 7), dtype=dtype)
    x[2, 1, 4, 6] = 1.5
    for bad in (x, x.to(memory_format=torch.channels_last), x.transpose(1, 2)):
        with pytest.raises(RuntimeError):
            functional.binary_cross_entropy(bad, target.reshape(bad.shape))
        with pytest.raises(RuntimeError):
            functional.binary_cross_entropy(bad, 0.9)


@by_form
def test_wrong_arguments(backend, device, form):
    function = FORMS[form][0]
    x, target = make(form, (4, 3), device)
    for number in (-0.1, 1.1, 2, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            function(x, number)
    one = target.new_ones(())
    for wrong in (target[:, :2], target[0], target.unsqueeze(0), target.flatten(), one):
        with pytest.raises(ValueError, match="shape"):
            function(x, wrong)
    for reduction in ("average", "batchmean", "", None):
        with pytest.raises(ValueError, match="reduction"):
            function(x, target, reduction=reduction)
    with pytest.raises(RuntimeError):
        function(x, (target > 0.5).long())
    for name in ["weight", "pos_weight"] if form == "logits" else ["weight"]:
        for shape in [(4,), (2, 3), (1, 4, 3, 1), (2, 4, 3)]:
            with pytest.raises(RuntimeError):
                function(x, target, **{name: torch.ones(shape, device=device)})
        weight = torch.ones(3, device=device, requires_grad=True)
        with pytest.raises(RuntimeError, match=name):
            function(x, target, **{name: weight})
        with torch.no_grad():
            assert torch.equal(function(x, target, **{name: weight}), function(x, target))


def test_dtypes_of_input_and_target_differ(backend, device):
    for dtype in (torch.float64, torch.bfloat16, torch.bool):
        x, target = make("probabilities", (4, 3), device)
        with pytest.raises(RuntimeError, match="dtype"):
            functional.binary_cross_entropy(x, target.to(dtype))
    for first in DTYPES:
        for second in DTYPES:
            x, target = make("logits", (9, 57), device, first)
            for reduction in REDUCTIONS:
                check("logits", x, target.to(second), reduction=reduction)


@by_form
@pytest.mark.parametrize(
    ("size_average", "reduce"),
    [(True, None), (False, None), (None, True), (None, False), (True, False), (False, True)],
)
def test_deprecated_arguments(backend, device, form, size_average, reduce):
    x, target = make(form, (4, 3), device)
    results = []
    for function in FORMS[form]:
        with pytest.warns(UserWarning, match="size_average and reduce"):
            results.append(function(x, target, None, size_average, reduce))
    torch.testing.assert_close(*results)
    with pytest.warns(UserWarning, match="size_average and reduce"):
        module = CLASSES[form](size_average=size_average, reduce=reduce)
    assert torch.equal(module(x, target), results[0])


@by_form
@by_reduction
@pytest.mark.parametrize("number", [False, True])
def test_modules_are_torchs(backend, device, form, reduction, number):
    cls = CLASSES[form]
    theirs_cls = getattr(nn, cls.__name__)
    x, target = make(form, (9, 5), device)
    for weights in weights_of(form, (9, 5), device=device):
        module = cls(reduction=reduction, **weights)
        theirs = theirs_cls(reduction=reduction, **weights)
        assert isinstance(module, theirs_cls)
        assert repr(module) == repr(theirs)
        given = 0.9 if number else target
        assert torch.equal(
            module(x, given), FORMS[form][0](x, given, reduction=reduction, **weights)
        )
        expected = theirs(x, torch.full_like(x, 0.9) if number else target)
        torch.testing.assert_close(module(x, given), expected)


@by_form
def test_state_dict_is_torchs_in_both_directions(form):
    cls = CLASSES[form]
    theirs_cls = getattr(nn, cls.__name__)
    for first, second in zip(weights_of(form, (2, 5)), weights_of(form, (2, 5)), strict=True):
        pairs = (cls(**first), theirs_cls(**second)), (theirs_cls(**first), cls(**second))
        for source, sink in pairs:
            assert list(source.state_dict()) == list(sink.state_dict()) == list(first)
            sink.load_state_dict(source.state_dict())
            for name, weight in first.items():
                assert torch.equal(sink.state_dict()[name], weight)


@by_form
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_copies_compute_the_same(form, how):
    x, target = make(form, (2, 5))
    for weights in weights_of(form, (2, 5)):
        module = CLASSES[form](reduction="sum", **weights)
        if how == "pickle":
            other = pickle.loads(pickle.dumps(module))
        elif how == "deepcopy":
            other = copy.deepcopy(module)
        else:
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        assert type(other) is type(module)
        assert torch.equal(other(x, target), module(x, target))


@by_form
@by_reduction
@pytest.mark.parametrize("target_dtype", [torch.bfloat16, torch.float32, None], ids=str)
def test_autocast_computes_in_float32(backend, device, form, reduction, target_dtype):
    x, target = make(form, (9, 57), device, torch.bfloat16)
    target = 0.9 if target_dtype is None else torch.rand(9, 57, device=device).to(target_dtype)
    dy = torch.randn(x.shape if reduction == "none" else (), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        ours = run(FORMS[form][0], x, target, dy, reduction=reduction)
    filled = torch.full_like(x, target, dtype=torch.float32) if target_dtype is None else target
    results = [ours]
    for dtype in (torch.float32, torch.float64):
        other = run(
            FORMS[form][1], x.to(dtype), filled.to(dtype), dy.to(dtype), reduction=reduction
        )
        results.append(other)
    assert ours["dx"].dtype == torch.bfloat16
    results[1]["dx"] = results[1]["dx"].bfloat16()
    bound = bounds(form, x, target, dy, reduction=reduction)
    for name in ours:
        assert_within(bound[name], *(result[name] for result in results), name)


@by_form
@by_reduction
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(backend, device, form, reduction, channels_last):
    x, target = make(form, (2, 3, 5, 4), device)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    ops, from_logits = torch.ops.ganfast, form == "logits"
    dy = torch.randn(x.shape if reduction == "none" else (), device=device, requires_grad=True)
    weight, pos_weight = torch.rand(2, *x.shape, device=device)
    weights = [(None, None), (weight, pos_weight if from_logits else None)]
    for labels in ((target, 0.0), (target.clone().requires_grad_(), 0.0), (None, 0.9)):
        for pair in weights[labels[0] is None :]:
            mode = (*pair, from_logits, reduction)
            opcheck(ops.binary_cross_entropy.default, (x, *labels, *mode))
            opcheck(ops.binary_cross_entropy_backward.default, (dy, x, *labels, *mode))
            if labels[0] is not None:
                args = (dy, x, labels[0], *mode)
                opcheck(ops.binary_cross_entropy_target_backward.default, args)


@by_form
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("target", ["tensor", "wants a gradient", 0.9], ids=str)
def test_compiles_whole_with_backward(backend, device, form, dynamic, target):
    module = CLASSES[form](weight=torch.rand(5, device=device))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    dy = torch.randn((), device=device)
    for batch in (4, 7, 9):
        x, given = make(form, (batch, 5), device)
        given = given.requires_grad_(target != "tensor") if isinstance(target, str) else target
        torch.testing.assert_close(run(compiled, x, given, dy), run(module, x, given, dy))


class Ops(TorchDispatchMode):
    """Remember the names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@by_form
@by_reduction
@pytest.mark.parametrize("number", [False, True])
def test_one_op_each_way(backend, device, form, reduction, number):
    """Nothing else runs: no tensor is filled with a label and nothing waits for the device."""
    x, target = make(form, (4, 5), device)
    x.requires_grad_()
    target = 1.0 if number else target
    with torch.no_grad(), Ops() as forward:
        FORMS[form][0](x, target, reduction=reduction)
    assert forward.names == ["ganfast::binary_cross_entropy"]
    with Ops() as forward:
        y = FORMS[form][0](x, target, reduction=reduction)
    assert forward.names == ["ganfast::binary_cross_entropy"]
    dy = torch.ones_like(y)
    with Ops() as backward:
        torch.autograd.grad(y, x, dy)
    assert backward.names == ["ganfast::binary_cross_entropy_backward"]


@by_form
@by_reduction
def test_same_bits_every_run(backend, device, form, reduction):
    x, target = make(form, (300, 301), device)
    dy = torch.randn(x.shape if reduction == "none" else (), device=device)
    first = run(FORMS[form][0], x, target, dy, reduction=reduction)
    for _ in range(3):
        again = run(FORMS[form][0], x, target, dy, reduction=reduction)
        for name, value in first.items():
            assert torch.equal(value, again[name]), name


@by_form
@by_reduction
def test_bits_do_not_depend_on_threads(several_threads, form, reduction):
    # Of torch's own sums they do, which the eager kernels use.
    if not torch._C._dispatch_has_kernel_for_dispatch_key("ganfast::binary_cross_entropy", "CPU"):
        missing("native", ganfast.backend.explain("cpu"))
    x, target = make(form, (300_000,))
    dy = torch.randn(x.shape if reduction == "none" else ())
    many = run(FORMS[form][0], x, target, dy, reduction=reduction)
    torch.set_num_threads(1)
    try:
        one = run(FORMS[form][0], x, target, dy, reduction=reduction)
    finally:
        torch.set_num_threads(several_threads)
    for name in ("y", "dx"):
        assert torch.equal(many[name], one[name]), name


@by_form
@by_reduction
@pytest.mark.parametrize("channels_last", [False, True])
def test_uninitialised_memory_is_never_read(backend, device, form, reduction, channels_last):
    x, target = make(form, (5, 3, 7, 9), device)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    dy = torch.randn(x.shape if reduction == "none" else (), device=device)
    target.requires_grad_()
    plain = run(FORMS[form][0], x, target, dy, reduction=reduction)
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    try:
        assert torch.empty(4).isnan().all()
        filled = run(FORMS[form][0], x, target, dy, reduction=reduction)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in ("y", "dx", "dtarget"):
        assert torch.equal(plain[name], filled[name]), name
