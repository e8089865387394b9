"""LeCam regularisation, VQGAN's adaptive weight, and scores of several scales, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganfast.functional import (
    adaptive_weight,
    gan_discriminator_loss,
    gan_generator_loss,
    lecam_regularization,
)
from ganfast.nn import GANLoss, LeCamRegularization


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_lecam_is_the_formula_of_its_authors():
    real, fake = drawn(5, 1, 3, 3), drawn(4, 1, 2, 2, seed=1)
    loss = lecam_regularization(real, fake, 0.3, -0.2)
    expected = F.relu(real + 0.2).pow(2).mean() + F.relu(0.3 - fake).pow(2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    gradients = [torch.autograd.grad(value, (real, fake)) for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=0)


def test_the_averages_are_weighted_means_of_the_past():
    decay, lecam = 0.9, LeCamRegularization(0.9).double()
    pasts = [drawn(2, 7, seed=seed) for seed in range(6)]
    for step, (real, fake) in enumerate(pasts, 1):
        loss = lecam(real, fake)
        weights = torch.tensor([decay ** (step - 1 - i) for i in range(step)], dtype=torch.float64)
        means = torch.stack([past.mean(1) for past in pasts[:step]])
        average = (weights[:, None] * means).sum(0) / weights.sum()
        expected = lecam_regularization(real, fake, *average.detach())
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
        assert loss.requires_grad
    state = {name: value.clone() for name, value in lecam.state_dict().items()}
    assert list(state) == ["real_average", "fake_average", "updates"]
    torch.testing.assert_close(lecam.eval()(*pasts[-1]), loss)
    torch.testing.assert_close(lecam.state_dict(), state, rtol=0, atol=0)
    again = LeCamRegularization(0.9).double().eval()
    again.load_state_dict(state)
    torch.testing.assert_close(again(*pasts[-1]), loss)
    assert torch.isfinite(LeCamRegularization().eval()(torch.ones(2), torch.ones(2)))


def test_the_adaptive_weight_is_that_of_vqgan():
    torch.manual_seed(0)
    layer, discriminator = nn.Conv2d(3, 3, 3).double(), nn.Conv2d(3, 1, 3).double()
    x = drawn(2, 3, 8, 8)
    y = layer(x)
    reconstruction, adversarial = (y - x[..., 1:-1, 1:-1]).abs().mean(), -discriminator(y).mean()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight)
    norms = [
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].pow(2).sum().sqrt()
        for loss in (reconstruction, adversarial)
    ]
    torch.testing.assert_close(weight, norms[0] / (norms[1] + 1e-4), rtol=1e-13, atol=0)
    assert not weight.requires_grad
    (reconstruction + weight * adversarial).backward()  # both graphs are still there
    y = layer(x)
    assert adaptive_weight(y.sum(), 0 * y.sum(), layer.weight, eps=1e-9) == 1e4
    assert adaptive_weight(y.sum(), 0 * y.sum(), layer.weight, eps=1e-9, maximum=3.0) == 3
    with pytest.raises(RuntimeError):
        adaptive_weight(x.sum(), y.sum(), layer.weight)


SCALES = [(4, 1, 6, 6), (4, 1, 3, 3), (4,)]


@pytest.mark.parametrize("kind", ["bce", "softplus", "hinge", "lsgan", "wasserstein"])
@pytest.mark.parametrize("halves", [False, True])
def test_scores_of_several_scales_are_averaged(kind, halves):
    criterion = GANLoss(kind)
    reals = [drawn(*shape, seed=i) for i, shape in enumerate(SCALES)]
    fakes = [drawn(*shape, seed=9 + i) for i, shape in enumerate(SCALES)]
    if halves:
        found = criterion.discriminator(
            [torch.cat(pair) for pair in zip(reals, fakes, strict=True)], splits=2
        )
    else:
        found = criterion.discriminator(reals, tuple(fakes))
    each = [criterion.discriminator(*pair) for pair in zip(reals, fakes, strict=True)]
    expected = [sum(values) / 3 for values in zip(*each, strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=1e-13, atol=1e-14)
    gradients = [torch.autograd.grad(loss[0], [*reals, *fakes]) for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-15)
    generator = criterion.generator(fakes)
    torch.testing.assert_close(generator, sum(map(criterion.generator, fakes)) / 3)


def test_softplus_is_the_cross_entropy_of_logits():
    real, fake = drawn(5), drawn(5, seed=1)
    loss, *_ = gan_discriminator_loss(real, fake, kind="softplus")
    torch.testing.assert_close(loss, F.softplus(-real).mean() + F.softplus(fake).mean())
    torch.testing.assert_close(gan_generator_loss(fake, kind="softplus"), F.softplus(-fake).mean())
    assert "'softplus'" in repr(GANLoss("softplus"))
    for options in ({"from_logits": False}, {"real_label": 0.9}):
        with pytest.raises(ValueError, match='use "bce"'):
            gan_discriminator_loss(real, fake, kind="softplus", **options)


def test_errors():
    scores = [torch.zeros(2)]
    for real, fake in (([], []), (scores, scores * 2), ([], None)):
        with pytest.raises(ValueError, match="one or more scales"):
            gan_discriminator_loss(real, fake)
    with pytest.raises(ValueError, match="one or more scales"):
        gan_generator_loss([])
    with pytest.raises(ValueError, match="give the scores of generated"):
        gan_discriminator_loss(scores)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        LeCamRegularization(1)
