"""Every op on shapes, strides, dtypes and options that nobody chose, against its eager form."""

from __future__ import annotations

import math

import pytest
import torch
from drawn import (
    DTYPES,
    assert_laid_out_like,
    check,
    draw_shape,
    draw_tensor,
    fuzz,
    st,
)

from ganfast import functional
from ganfast.activations import ACTIVATIONS
from ganfast.ops import batch_norm_act
from ganfast.ops.batch_norm_act import reference as eager_norm
from ganfast.ops.losses import bce, gan
from ganfast.ops.losses import reference as eager_losses
from ganfast.verify.bounds import NormBounds
from ganfast.verify.loss_bounds import (
    cross_entropy_bound,
    cross_entropy_slope_bound,
    cross_entropy_target_bound,
    gan_loss_bounds,
    gan_slope_bound,
)


class Norm:
    """What the ops of batch_norm_act have in common: an input, parameters, an activation."""

    def __init__(self, draw, *, training):
        self.draw, self.dtype = draw, draw(st.sampled_from(DTYPES))
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.splits = draw(st.sampled_from([1, 1, 1, 2, 3])) if training else 1
        self.shape = draw_shape(draw, 2, 5)
        if training and math.prod(self.shape) == self.shape[1]:  # torch refuses a single value
            self.shape[0] = 2
        self.shape[0] *= self.splits
        self.summed = math.prod(self.shape) // max(1, self.shape[1])
        self.eps = draw(st.sampled_from([1e-5, 1e-3, 0.8]))
        self.activation = draw(st.sampled_from(list(ACTIVATIONS)))
        self.slope = draw(st.sampled_from([0.2, 0.0, 1.0, 1.5, -0.5]))
        self.order = draw(st.sampled_from(["norm_act", "act_norm"]))
        self.act = (self.activation, self.slope, self.order)
        values = torch.randn(self.shape) + draw(st.sampled_from([0.0, 0.5, 30.0]))
        if draw(st.integers(0, 4)) == 0:  # the native kernels guess the mean from the first values
            values[: max(1, len(values) // 8)] += 100
        self.x = draw_tensor(draw, values, self.dtype)
        self.weight, self.bias = (self.vector(torch.randn(self.shape[1])) for _ in range(2))

    def vector(self, values, *, optional=True):
        """Draw a vector of one value a channel, in one of the dtypes that go with x."""
        if optional and self.draw(st.integers(0, 3)) == 0:
            return None
        return draw_tensor(self.draw, values, self.draw(st.sampled_from([self.wide, self.dtype])))

    def gradient(self):
        """Draw a tensor of x's shape: any layout, stride 0 included."""
        return draw_tensor(self.draw, torch.randn(self.shape), self.dtype, expand=True)

    def stats(self, training):
        """Return the saved statistics of a forward pass."""
        if training:
            no_buffers = (None, None, None, 0.1)
            _, stats = eager_norm.train(
                self.x, self.weight, self.bias, *no_buffers, self.eps, *self.act, self.splits
            )
            return stats
        mean, var = torch.randn(self.shape[1]), torch.rand(self.shape[1]) + 0.1
        buffers = mean.to(self.wide), var.to(self.wide)
        _, stats = eager_norm.evaluate(
            self.x, self.weight, self.bias, *buffers, self.eps, *self.act
        )
        return stats

    def bounds(self, **options):
        """Return the bounds of the op's results."""
        return NormBounds(
            self.x, self.weight, self.bias, self.act, eps=self.eps, splits=self.splits, **options
        )


@fuzz
def test_train(backend, draw):
    case = Norm(draw, training=True)
    mean = case.vector(torch.randn(case.shape[1]))
    var = case.vector(torch.rand(case.shape[1]) + 0.1)
    count = draw(st.sampled_from([None, 0, 7]))
    momentum = draw(st.sampled_from([0.1, 0.0, 1.0] + ([] if count is None else [None])))
    buffers = [mean, var, None if count is None else torch.tensor(count)]

    bounds = case.bounds()
    of_buffers = bounds.running(mean, var, momentum, count or 0)
    of_buffers = [b for b in (*of_buffers, None if count is None else 0.0) if b is not None]
    of_stats = bounds.stats() if case.x.numel() else None  # not even computed of nothing
    y, *_ = check(
        backend, batch_norm_act.train, eager_norm.train,
        [case.x, case.weight, case.bias, *buffers, momentum, case.eps, *case.act, case.splits],
        [bounds.y(), of_stats, *of_buffers], written=(3, 4, 5), summed=case.summed,
    )  # fmt: skip
    assert_laid_out_like(case.x, y)


@fuzz
def test_evaluate(backend, draw):
    case = Norm(draw, training=False)
    mean = case.vector(torch.randn(case.shape[1]), optional=False)
    var = case.vector(torch.rand(case.shape[1]) + 0.1, optional=False)
    bounds = case.bounds(running=(mean, var))
    y, _ = check(
        backend, batch_norm_act.evaluate, eager_norm.evaluate,
        [case.x, case.weight, case.bias, mean, var, case.eps, *case.act],
        [bounds.y(), bounds.stats()],
    )  # fmt: skip
    assert_laid_out_like(case.x, y)


@fuzz
def test_backward(backend, draw):
    training = draw(st.booleans())
    case = Norm(draw, training=training)
    dy, stats = case.gradient(), case.stats(training)
    needed = draw(st.sampled_from([(True, True), (True, False), (False, True), (False, False)]))
    bounds = case.bounds(stats=stats, training=training).backward(dy)
    dx, *_ = check(
        backend, batch_norm_act.backward, eager_norm.backward,
        [dy, case.x, case.weight, stats, case.eps, training, *case.act, *needed],
        bounds, summed=case.summed,
    )  # fmt: skip
    if needed[0]:
        assert_laid_out_like(case.x, dx)


@pytest.mark.parametrize("shape", [(8, 5), (4, 5, 1), (4, 5, 3, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_strided_vectors(backend, device, shape, training):
    # torch itself reads a strided weight wrongly in backward: it gets contiguous copies here.
    x, dy = torch.randn(shape, device=device), torch.randn(shape, device=device)
    strided = [v.to(device)[::2] for v in torch.rand(4, 10) + 0.5]
    results = []
    for vectors in (strided, [v.clone() for v in strided]):
        mean, var, weight, bias = vectors
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        u = x.clone().requires_grad_()
        y = functional.batch_norm_act(u, mean, var, weight, bias, training, activation="relu")
        results.append([y, *torch.autograd.grad(y, (u, weight, bias), dy), mean, var])
    for ours, plain in zip(*results, strict=True):
        assert torch.equal(ours, plain)


@fuzz
def test_double_backward(backend, draw):
    training = draw(st.booleans())
    case = Norm(draw, training=training)
    dy, stats = case.gradient(), case.stats(training)
    ddx = case.gradient() if draw(st.booleans()) else None
    ddweight, ddbias = (case.vector(torch.randn(case.shape[1])) for _ in range(2))
    bounds = case.bounds(stats=stats, training=training)
    bounds = bounds.double_backward(ddx, ddweight, ddbias, dy)
    d_dy, d_x, _ = check(
        backend, batch_norm_act.double_backward, eager_norm.double_backward,
        [ddx, ddweight, ddbias, dy, case.x, case.weight, stats, case.eps, training, *case.act],
        bounds, summed=case.summed,
    )  # fmt: skip
    assert_laid_out_like(case.x, d_dy, d_x)


def draw_scores(draw, shape, dtype, *, probabilities):
    """Draw scores: logits, or probabilities with both ends among them."""
    values = torch.rand(shape) if probabilities else torch.randn(shape) * 3
    if probabilities and draw(st.booleans()):
        values = (values * 1.2 - 0.1).clamp(0, 1)
    return draw_tensor(draw, values, dtype, expand=True)


@fuzz
def test_binary_cross_entropy(backend, draw):
    from_logits, dtype = draw(st.booleans()), draw(st.sampled_from(DTYPES))
    reduction = draw(st.sampled_from(["none", "mean", "sum"]))
    shape = draw_shape(draw, 0, 4)
    x = draw_scores(draw, shape, dtype, probabilities=not from_logits)
    label = draw(st.sampled_from([None, 0.0, 1.0, 0.9]))
    target = draw_scores(draw, shape, dtype, probabilities=True) if label is None else None
    weight, pos_weight = (
        draw_tensor(draw, torch.rand(shape) * 3, dtype, expand=True) if given else None
        for given in (draw(st.booleans()), from_logits and draw(st.booleans()))
    )
    dy = torch.tensor(1.75, dtype=dtype)
    if reduction == "none":
        dy = draw_tensor(draw, torch.randn(shape), dtype, expand=True)

    arguments = [x, target, 0.0 if label is None else label, weight, pos_weight]
    weights, mode = (weight, pos_weight), (from_logits, reduction)
    options = dict(zip(("from_logits", "reduction"), mode, strict=True))
    values = label if target is None else target
    bounds = [cross_entropy_bound(x, values, *weights, **options)]
    (loss,) = check(
        backend, bce.forward, eager_losses.binary_cross_entropy, [*arguments, *mode], bounds,
        summed=x.numel(),
    )  # fmt: skip
    arguments = [dy, *arguments, *mode]
    bounds = [cross_entropy_slope_bound(dy, x, values, *weights, **options)]
    eager = eager_losses.binary_cross_entropy_backward
    (dx,) = check(backend, bce.backward, eager, arguments, bounds)
    assert_laid_out_like(x, dx, *([loss] if reduction == "none" else []))
    if target is not None:  # eager on every backend
        del arguments[3]  # label
        bounds = [cross_entropy_target_bound(dy, x, *weights, **options)]
        eager = eager_losses.binary_cross_entropy_target_backward
        check(backend, bce.target_backward, eager, arguments, bounds)


FORMS = ["probabilities", "logits", "squared", "hinge", "linear"]


@fuzz
def test_gan_loss(backend, draw):
    form, dtype = draw(st.sampled_from(FORMS)), draw(st.sampled_from(DTYPES))
    labels = draw(st.sampled_from([(1.0, 0.0), (0.9, 0.1)]))
    if form in ("hinge", "linear"):
        labels = (1.0, -1.0)
    way = draw(st.sampled_from(["both", "splits", "generator"]))
    probabilities = form == "probabilities"
    shape = draw_shape(draw, 1, 4)
    shape[0] *= 2 if way == "splits" else 1
    real = draw_scores(draw, shape, dtype, probabilities=probabilities)
    fake = None
    if way == "both":
        fake = draw_scores(draw, draw_shape(draw, 0, 4), dtype, probabilities=probabilities)
    wide = torch.promote_types(dtype, torch.float32)
    dloss = torch.tensor(draw(st.sampled_from([1.75, -0.5])), dtype=wide)

    halves = real.chunk(2) if way == "splits" else [real] if fake is None else [real, fake]
    labelled = list(zip(halves, labels, strict=False))
    bounds = [*gan_loss_bounds(form, *labelled), 0.0][:3]
    arguments = [real, fake, form, *labels, 2 if way == "splits" else 1]
    check(
        backend, gan.forward, eager_losses.gan_loss, arguments, bounds,
        summed=max(x.numel() for x in halves),
    )  # fmt: skip
    needed = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    bounds = [gan_slope_bound(form, dloss, *pair) for pair in labelled]
    bounds = [torch.cat(bounds), 0.0] if way == "splits" else [*bounds, 0.0][:2]
    gradients = check(
        backend, gan.backward, eager_losses.gan_loss_backward, [dloss, *arguments, *needed], bounds
    )
    given = [real] if fake is None else [real, fake]
    for x, dx, wanted in zip(given, gradients, needed, strict=False):
        if wanted:
            assert_laid_out_like(x, dx)
