"""Editing given images: the search, what it loses, masks, weights and Poisson blending."""

from __future__ import annotations

import pytest
import torch

from ganfast.applications.edit import (
    SearchOptions,
    blend,
    context_weights,
    inpaint,
    make_mask,
    mix,
    project,
    resize,
    upscale,
    ways,
)
from ganfast.applications.latent_search import candidates, prior_loss, search
from ganfast.models import GAN, dcgan, mlp_gan
from ganfast.training import DataError

SIZE = 16


@pytest.fixture(scope="module")
def gan() -> GAN:
    """Return a network of random weights that are large enough to draw something."""
    torch.manual_seed(1)
    built = dcgan(image_size=SIZE, channels=1, width=8, latent=6)
    with torch.no_grad():
        built.generator.main[-2].weight.mul_(100)
        for _ in range(30):  # for the running statistics
            built.generator(torch.randn(64, *built.latent))
    for network in built[:2]:
        network.eval().requires_grad_(False)
    return built


@pytest.fixture(scope="module")
def targets(gan: GAN) -> torch.Tensor:
    return gan.generator(torch.randn(3, *gan.latent, generator=torch.Generator().manual_seed(9)))


OPTIONS = SearchOptions(steps=80, restarts=3)


@pytest.mark.parametrize("features", [0.0, 0.1])
def test_projection_finds_what_the_generator_made(gan, targets, features):
    found = project(gan, targets, OPTIONS, features=features)
    error = (found.images - targets).square().mean((1, 2, 3))
    spread = (targets - targets.mean(0)).square().mean()
    assert spread > 0.02
    assert error.max() < 0.1 * spread
    assert torch.equal(found.images, gan.generator(found.latent))


def test_projection_serves_models_without_convolutions():
    torch.manual_seed(0)
    gan = mlp_gan(image_size=8, width=4, latent=5)
    for network in gan[:2]:
        network.eval().requires_grad_(False)
    images = torch.zeros(2, 1, 8, 8)
    few, many = (project(gan, images, SearchOptions(steps=s, restarts=2)) for s in (1, 30))
    assert (many.loss < few.loss).all()


def test_features_and_prior_are_in_the_loss(gan, targets):
    start = SearchOptions(steps=1, restarts=1, learning_rate=1e-9, prior=0.5)
    made = torch.randn(3, 1, *gan.latent, generator=torch.Generator().manual_seed(0)).flatten(0, 1)
    radius = 6**0.5
    lengths = made.flatten(1).norm(dim=1)
    made = made * (radius / lengths.clamp(min=radius)).reshape(-1, 1, 1, 1)
    images = gan.generator(made)
    pixels = (images - targets).square().mean((1, 2, 3))
    seen, wanted = (gan.discriminator.features(x).flatten(1) for x in (images, targets))
    apart = (seen - wanted).square().mean(1) / wanted.square().mean(1)
    prior = (1 - gan.discriminator(images).sigmoid()).log()
    expected = pixels + 2 * apart + 0.5 * prior
    found = project(gan, targets, start, features=2.0)
    torch.testing.assert_close(found.loss, expected, rtol=1e-4, atol=1e-5)


def test_restarts_keep_the_best_and_the_ball_holds(gan):
    def far(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)) * (1 + which)

    options = [SearchOptions(steps=10, restarts=r, prior=0.0) for r in (1, 6)]
    (_, one), (latent, six) = (search(gan, far, 2, o) for o in options)
    assert (six <= one + 1e-6)[0]  # the first image's first start is the same
    assert latent.flatten(1).norm(dim=1).max() <= 6**0.5 + 1e-5
    strong = SearchOptions(steps=40, restarts=1, prior=0.0, learning_rate=5.0)
    assert search(gan, far, 2, strong)[0].flatten(1).norm(dim=1).max() <= 6**0.5 + 1e-5


def test_a_seed_repeats_a_search_and_batches_change_nothing(gan, targets):
    runs = [
        project(gan, targets, SearchOptions(steps=5, seed=seed, batch=batch)).latent
        for seed, batch in ((0, 64), (0, 64), (1, 64), (0, 5))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    torch.testing.assert_close(runs[3], runs[0], rtol=1e-3, atol=1e-3)


def test_prior_is_the_log_of_being_generated():
    scores = torch.tensor([-3.0, 0.0, 2.0])
    torch.testing.assert_close(prior_loss(scores), (1 - scores.sigmoid()).log())
    assert prior_loss(torch.tensor(200.0)).isfinite()


@pytest.mark.parametrize("kind", ["center", "left"])
def test_inpainting_fills_the_hole_and_keeps_the_rest(gan, targets, kind):
    missing = make_mask(kind, SIZE)
    spoilt = targets.masked_fill(missing, torch.nan)  # what lies in the hole is not read
    found = inpaint(gan, spoilt, missing, OPTIONS)
    assert found.loss.isfinite().all()
    for image in (found.completed, found.blended):
        assert torch.equal(image[..., ~missing], targets[..., ~missing])
    mean = targets.mean(0)
    error, plain = (
        (image - targets)[..., missing].square().mean() for image in (found.completed, mean)
    )
    assert error < 0.5 * plain
    assert torch.equal(found.completed[..., missing], found.generated[..., missing])


def test_the_expected_filling_weighs_every_search(gan, targets):
    missing = make_mask("left", SIZE)
    found = inpaint(gan, targets, missing, OPTIONS)
    weights = context_weights(missing)

    def context(made: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return ((made - targets[which]).abs() * weights).sum((1, 2, 3))

    latent, loss = candidates(gan, context, len(targets), OPTIONS)
    assert loss.shape == (3, OPTIONS.restarts)
    assert torch.equal(loss.min(1).values, found.loss)
    least = loss.min(1, keepdim=True).values
    shares = ((least - loss) / least.abs()).exp()
    shares = shares / shares.sum(1, keepdim=True)
    assert not torch.allclose(shares, shares.mean())
    every = gan.generator(latent.flatten(0, 1)).unflatten(0, loss.shape)
    expected = torch.einsum("nr,nrchw->nchw", shares, every)
    torch.testing.assert_close(found.expected[..., missing], expected[..., missing])
    assert torch.equal(found.expected[..., ~missing], targets[..., ~missing])


def test_a_search_shows_its_progress(gan, targets, capsys, monkeypatch):
    monkeypatch.setattr("ganfast.training.progress.LINE_EVERY_S", 0.0)
    options = SearchOptions(steps=3, restarts=2, batch=4)
    project(gan, targets, options)
    assert capsys.readouterr().err == ""
    project(gan, targets, SearchOptions(steps=3, restarts=2, batch=4, shown=True))
    said = capsys.readouterr().err
    assert "step 1 of 6" in said  # two batches of three steps
    assert "left" in said


def test_resizing_is_that_of_pil():
    image_module = pytest.importorskip("PIL.Image")
    # Far from black and white, at which PIL clips after each of its two passes.
    grey = torch.randint(60, 190, (16, 16), generator=torch.Generator().manual_seed(0))
    picture = image_module.fromarray(grey.to(torch.uint8).numpy())
    for side in (4, 8, 32):
        smaller = picture.resize((side, side), image_module.Resampling.BICUBIC)
        expected = torch.tensor(list(smaller.tobytes())).view(side, side)
        found = resize(grey[None, None].float(), side).clamp(0, 255)[0, 0]
        assert (found - expected).abs().max() <= 1.5  # PIL rounds twice


def test_upscaling_finds_what_the_generator_made(gan, targets):
    small = resize(targets, 8)
    found = upscale(gan, small, OPTIONS)
    error, plain = ((x - targets).square().mean() for x in (found.generated, resize(small, SIZE)))
    assert error < 0.5 * plain
    assert torch.equal(found.generated, gan.generator(found.latent))
    left, before = (
        (resize(x, 8) - small).square().mean() for x in (found.corrected, found.generated)
    )
    assert left < 0.5 * before
    for shape in ((1, 1, 16, 16), (1, 1, 4, 8)):
        with pytest.raises(ValueError, match="square and have a side below 16"):
            upscale(gan, torch.zeros(shape))


def test_mixing_goes_from_an_image_to_the_style(gan):
    latent, style = torch.randn(3, *gan.latent), torch.randn(1, *gan.latent)
    torch.testing.assert_close(mix(gan, latent, style, 0.0), gan.generator(latent))
    own = gan.generator(style).expand(3, -1, -1, -1)
    torch.testing.assert_close(mix(gan, latent, style, 1.0), own)
    halves = torch.cat([ways(gan, torch.cat([z[None], style]), 3)[:, 1] for z in latent])
    torch.testing.assert_close(mix(gan, latent, style, 0.5), halves)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 2"):
        mix(gan, latent, style, 2)


def test_masks_miss_what_they_say(tmp_path):
    assert make_mask("center", 16).sum() == 64
    assert make_mask("center", 16)[4:12, 4:12].all()
    assert make_mask("left", 16)[:, :8].all()
    assert make_mask("left", 16).sum() == 128
    random = make_mask("random", 16, seed=3)
    assert random.sum() == 205
    assert torch.equal(random, make_mask("random", 16, seed=3))
    assert not torch.equal(random, make_mask("random", 16, seed=4))


def test_a_mask_from_a_file_is_white_where_pixels_are_missing(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    picture = image_module.new("L", (32, 32))
    picture.paste(255, (0, 0, 8, 16))
    picture.save(tmp_path / "mask.png")
    missing = make_mask(str(tmp_path / "mask.png"), 16)
    assert missing[:8, :4].all()
    assert missing.sum() == 32
    for grey, said in ((255, "every pixel"), (0, "no pixel")):
        image_module.new("L", (8, 8), grey).save(tmp_path / "plain.png")
        with pytest.raises(DataError, match=said):
            make_mask(str(tmp_path / "plain.png"), 16)
    with pytest.raises(DataError, match=r"center, random, left or an image file"):
        make_mask("middle", 16)


def test_weights_count_the_missing_neighbours():
    torch.manual_seed(0)
    missing = torch.rand(9, 9) < 0.3
    weights = context_weights(missing, window=5)
    for row in range(9):
        for column in range(9):
            around = missing[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            share = around.sum() / (around.numel() - 1)
            expected = 0.0 if missing[row, column] else float(share)
            assert weights[row, column] == pytest.approx(expected)
    far = context_weights(make_mask("center", 32))
    assert far[0, 0] == 0
    assert far[7, 16] > far[6, 16] > far[5, 16] > 0


def gradients(image: torch.Tensor) -> list[torch.Tensor]:
    return [image.diff(dim=-1), image.diff(dim=-2)]


@pytest.mark.parametrize("kind", ["center", "left", "random"])
def test_blending_has_the_least_difference_of_gradients(kind):
    pytest.importorskip("scipy")
    torch.manual_seed(0)
    missing = make_mask(kind, 12)
    images, fillings = 0.2 * torch.randn(2, 2, 3, 12, 12, dtype=torch.float64)
    blended = blend(images, fillings, missing).requires_grad_()
    assert torch.equal(blended[..., ~missing], images[..., ~missing])
    loss = sum(
        (a - b).square().sum() for a, b in zip(gradients(blended), gradients(fillings), strict=True)
    )
    (slope,) = torch.autograd.grad(loss, blended)
    assert slope[..., missing].abs().max() < 1e-9


def test_blending_takes_a_constant_away_and_stays_in_range():
    pytest.importorskip("scipy")
    torch.manual_seed(0)
    missing = make_mask("center", 16)
    images = 0.5 * torch.rand(2, 1, 16, 16) - 0.5
    torch.testing.assert_close(blend(images, images + 0.4, missing), images)
    assert blend(images, 50 * torch.randn_like(images), missing).abs().max() <= 1
    row = torch.tensor([[False, True, True, False]])
    bridge = blend(torch.tensor([[[[0.0, 9, 9, 0.6]]]]), torch.zeros(1, 1, 1, 4), row)
    torch.testing.assert_close(bridge, torch.tensor([[[[0.0, 0.2, 0.4, 0.6]]]]))


def test_ways_begin_and_end_at_their_images(gan):
    latent = torch.randn(3, *gan.latent)
    images = gan.generator(latent)
    found = ways(gan, latent, 5)
    torch.testing.assert_close(found[:, 0], images[:-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, -1], images[1:], rtol=1e-4, atol=1e-4)
    assert (found[0, 2] - found[0, 0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="two ends"):
        ways(gan, latent[:1], 5)
