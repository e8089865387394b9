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
    largest,
    st,
)

from ganfast import functional
from ganfast.activation import ACTIVATIONS
from ganfast.ops import batch_norm_act, binary_cross_entropy, gan_loss
from ganfast.ops.batch_norm_act import eager as eager_norm
from ganfast.ops.binary_cross_entropy import eager as eager_bce
from ganfast.ops.gan_loss import eager as eager_gan


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
        self.values = math.prod(self.shape) // max(1, self.splits * self.shape[1])
        self.eps = draw(st.sampled_from([1e-5, 1e-3, 0.8]))
        self.activation = draw(st.sampled_from(list(ACTIVATIONS)))
        self.slope = draw(st.sampled_from([0.2, 0.0, 1.0, 1.5, -0.5]))
        self.order = draw(st.sampled_from(["norm_act", "act_norm"]))
        self.form = (self.activation, self.slope, self.order)
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
                self.x, self.weight, self.bias, *no_buffers, self.eps, *self.form, self.splits
            )
            return stats
        mean, var = torch.randn(self.shape[1]), torch.rand(self.shape[1]) + 0.1
        buffers = mean.to(self.wide), var.to(self.wide)
        _, stats = eager_norm.evaluate(
            self.x, self.weight, self.bias, *buffers, self.eps, *self.form
        )
        return stats

    def largest_u(self):
        """Return the largest value that is normalised."""
        slope = abs(self.slope) if self.order == "act_norm" else 1.0
        return largest(self.x.double()) * max(1.0, slope)

    def sizes_of_forward(self, stats):
        """Return the sizes of the terms of y and of the rows of stats, all values of one size."""
        mean, rstd, scale, shift = (largest(row) for row in stats.unbind(1))
        u = self.largest_u()
        return scale * (u + mean) + shift, max(u, rstd, scale * u + shift)

    def chunks(self, t):
        """Return t in float64, of shape (splits, C, values of a channel)."""
        images = self.shape[0] // self.splits
        if t.numel() == 0:
            return torch.zeros(self.splits, self.shape[1], 1, dtype=torch.float64)
        t = t.double().contiguous().reshape(self.splits, images, *self.shape[1:])
        return t.movedim(2, 1).flatten(2)


@fuzz
def test_train(backend, draw):
    case = Norm(draw, training=True)
    mean = case.vector(torch.randn(case.shape[1]))
    var = case.vector(torch.rand(case.shape[1]) + 0.1)
    count = draw(st.sampled_from([None, 0, 7]))
    momentum = draw(st.sampled_from([0.1, 0.0, 1.0] + ([] if count is None else [None])))
    buffers = [mean, var, None if count is None else torch.tensor(count)]

    def operands(exact):
        sizes = [case.largest_u(), 2 * case.largest_u() ** 2, 0.0]
        of_buffers = [size for size, b in zip(sizes, buffers, strict=True) if b is not None]
        return [*case.sizes_of_forward(exact[1]), *of_buffers]

    y, *_ = check(
        backend, batch_norm_act.train, eager_norm.train,
        [case.x, case.weight, case.bias, *buffers, momentum, case.eps, *case.form, case.splits],
        operands, written=(3, 4, 5), added_up=case.values,
    )  # fmt: skip
    assert_laid_out_like(case.x, y)


@fuzz
def test_evaluate(backend, draw):
    case = Norm(draw, training=False)
    mean = case.vector(torch.randn(case.shape[1]), optional=False)
    var = case.vector(torch.rand(case.shape[1]) + 0.1, optional=False)
    y, _ = check(
        backend, batch_norm_act.evaluate, eager_norm.evaluate,
        [case.x, case.weight, case.bias, mean, var, case.eps, *case.form],
        lambda exact: case.sizes_of_forward(exact[1]),
    )  # fmt: skip
    assert_laid_out_like(case.x, y)


class Terms:
    """Sizes of the terms of the gradients: each channel's h, g, v and their means."""

    def __init__(self, case, stats, dy, ddx=None):
        mean, rstd, scale, _ = (row.double().unsqueeze(-1) for row in stats.unbind(1))
        steepest = max(1.0, abs(case.slope))
        u = case.chunks(case.x)
        if case.order == "act_norm":
            u = ACTIVATIONS[case.activation].apply(u, case.slope)
        self.h, self.rstd, self.scale = ((u - mean) * rstd).abs(), rstd.abs(), scale.abs()
        self.g = case.chunks(dy).abs() * steepest
        self.v = None if ddx is None else case.chunks(ddx).abs() * steepest
        self.steepest = steepest


def _mean(t):
    return t.mean(-1, keepdim=True)


@fuzz
def test_backward(backend, draw):
    training = draw(st.booleans())
    case = Norm(draw, training=training)
    dy, stats = case.gradient(), case.stats(training)
    needed = draw(st.sampled_from([(True, True), (True, False), (False, True), (False, False)]))

    def operands(exact):
        t = Terms(case, stats, dy)
        dx = t.scale * (t.g + _mean(t.g) + t.h * _mean(t.g * t.h)) * t.steepest
        return largest(dx), largest((t.g * t.h).sum((0, 2))), largest(t.g.sum((0, 2)))

    dx, *_ = check(
        backend, batch_norm_act.backward, eager_norm.backward,
        [dy, case.x, case.weight, stats, case.eps, training, *case.form, *needed],
        operands, added_up=case.values * case.splits,
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

    def operands(exact):
        t = Terms(case, stats, dy, torch.zeros_like(dy) if ddx is None else ddx)
        p, q = (0.0 if v is None else largest(v) for v in (ddweight, ddbias))
        vh, gh = _mean(t.v * t.h), _mean(t.g * t.h)
        s = _mean(t.v * t.g) + _mean(t.v) * _mean(t.g) + vh * gh
        d_dy = t.scale * (t.v + _mean(t.v) + t.h * vh) + p * t.h + q
        e = p * t.g + t.scale * (t.v * gh + t.g * vh)
        d_x = t.rstd * (e + _mean(e) + t.h * (_mean(e * t.h) + t.scale * s))
        d_weight = (t.rstd * s * t.h.shape[2]).sum(0)
        return largest(d_dy) * t.steepest, largest(d_x) * t.steepest, largest(d_weight)

    d_dy, d_x, _ = check(
        backend, batch_norm_act.double_backward, eager_norm.double_backward,
        [ddx, ddweight, ddbias, dy, case.x, case.weight, stats, case.eps, training, *case.form],
        operands, added_up=case.values * case.splits,
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

    u = x.double()
    t = torch.full_like(u, label) if target is None else target.double()
    w, p = (1.0 if v is None else v.double() for v in (weight, pos_weight))
    if from_logits:
        terms, slope = w * (1 + p) * (1 + u.abs()), w * (1 + p)
    else:
        terms = w * (1 + t * u.log().abs().clamp_max(100) + (-u).log1p().abs().clamp_max(100))
        slope = w * (u + t) / (u * (1 - u)).clamp_min(1e-12)
    y = {"none": largest(terms), "mean": largest(terms), "sum": terms.sum().item()}[reduction]
    n = max(1, x.numel()) if reduction == "mean" else 1

    arguments = [x, target, 0.0 if label is None else label, weight, pos_weight]
    mode = (from_logits, reduction)
    op, eager = binary_cross_entropy, eager_bce
    (loss,) = check(
        backend, op.forward, eager.forward, [*arguments, *mode], lambda exact: [y],
        added_up=1 if reduction == "none" else x.numel(),
    )  # fmt: skip
    size = largest(slope * dy.double()) / n
    arguments = [dy, *arguments, *mode]
    (dx,) = check(backend, op.backward, eager.backward, arguments, lambda exact: [size])
    assert_laid_out_like(x, dx, *([loss] if reduction == "none" else []))
    if target is not None:  # eager on every backend
        del arguments[3]  # label
        check(backend, op.target_backward, eager.target_backward, arguments, lambda exact: [0.0])


KINDS = ["probabilities", "logits", "squared", "hinge", "linear"]


def terms_of(kind, u):
    """Return the sizes of the terms of each score's loss, of its slope and of the score."""
    if kind == "probabilities":
        ends = u.log().abs().clamp_max(100) + (-u).log1p().abs().clamp_max(100)
        return 1 + ends, (u + 1) / (u * (1 - u)).clamp_min(1e-12), u
    terms = 1 + u.abs()
    return (terms**2 if kind == "squared" else terms), 2 * terms, terms


@fuzz
def test_gan_loss(backend, draw):
    kind, dtype = draw(st.sampled_from(KINDS)), draw(st.sampled_from(DTYPES))
    labels = draw(st.sampled_from([(1.0, 0.0), (0.9, 0.1)]))
    if kind in ("hinge", "linear"):
        labels = (1.0, -1.0)
    form = draw(st.sampled_from(["both", "splits", "generator"]))
    probabilities = kind == "probabilities"
    shape = draw_shape(draw, 1, 4)
    shape[0] *= 2 if form == "splits" else 1
    real = draw_scores(draw, shape, dtype, probabilities=probabilities)
    fake = None
    if form == "both":
        fake = draw_scores(draw, draw_shape(draw, 0, 4), dtype, probabilities=probabilities)
    wide = torch.promote_types(dtype, torch.float32)
    dloss = torch.tensor(draw(st.sampled_from([1.75, -0.5])), dtype=wide)

    given = [real] if fake is None else [real, fake]
    losses, slopes, scores = zip(*(terms_of(kind, x.double()) for x in given), strict=True)
    score = max(map(largest, scores))
    sizes = [sum(map(largest, losses)), score, score]
    arguments = [real, fake, kind, *labels, 2 if form == "splits" else 1]
    check(
        backend, gan_loss.forward, eager_gan.forward, arguments, lambda exact: sizes,
        added_up=sum(x.numel() for x in given),
    )  # fmt: skip
    needed = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    # Twice for the means of two halves, twice for dloss.
    sizes = [4 * largest(slope) / max(1, slope.numel()) for slope in slopes]
    gradients = check(
        backend, gan_loss.backward, eager_gan.backward, [dloss, *arguments, *needed],
        lambda exact: [*sizes, 0.0][:2],
    )  # fmt: skip
    for x, dx, wanted in zip(given, gradients, needed, strict=False):
        if wanted:
            assert_laid_out_like(x, dx)
