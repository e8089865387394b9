"""Augmentation: the conditional DCGAN, the classifier, the comparison and its files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

pytest.importorskip("torchvision")

from ganfast.applications.augment import (
    METHODS,
    AugmentOptions,
    Classifier,
    GeneratorOptions,
    accuracy,
    experiment,
    generate,
    plot_accuracies,
    run_seed,
    save_class_grid,
    save_image_folder,
    summarise,
    train_classifier,
    train_conditional,
)
from ganfast.applications.labelled import LabelledData, few_labels
from ganfast.applications.records import Record
from ganfast.applications.shifts import moved, shifted
from ganfast.training import DivergenceError, ImageData, load_images
from ganfast.training.progress import silent


def stripes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of two classes: white above and white below, with some noise."""
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 1, 16, 16), dtype=torch.uint8)
    images[labels == 0, :, :8] += 190
    images[labels == 1, :, 8:] += 190
    return images, labels


SHORT = GeneratorOptions(
    updates=60, batch_size=16, width=8, latent=8, learning_rate=2e-3, decay=0.9
)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return train_conditional(*stripes(20), 2, SHORT, seed=0)


def test_generated_images_are_of_their_class(trained):
    images, labels = generate(trained, 30, seed=1)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 30 + [1] * 30
    above = images[:, :, :8].float().mean((1, 2, 3)) - images[:, :, 8:].float().mean((1, 2, 3))
    assert (above[:30] > 0).float().mean() > 0.9
    assert (above[30:] < 0).float().mean() > 0.9
    assert torch.equal(images, generate(trained, 30, seed=1)[0])
    assert not torch.equal(images, generate(trained, 30, seed=2)[0])
    assert not trained.generator.training


def test_networks_follow_their_losses_update_by_update():
    """The first update, computed again by hand."""
    images, labels = stripes(12)
    options = replace(SHORT, updates=1, shift=0.0, decay=0.0)
    found = train_conditional(images, labels, 2, options, seed=3)
    from ganfast.models import acgan

    torch.manual_seed(3)
    gan = acgan(16, 1, 8, 8, 2)
    rng = torch.Generator().manual_seed(3)
    chosen = torch.randint(12, (16,), generator=rng)
    wanted, noise = labels[chosen], torch.randn(16, 8, 1, 1, generator=rng)
    adams = [torch.optim.Adam(m.parameters(), 2e-3, (0.5, 0.999)) for m in gan[:2]]
    fake = gan.generator(noise, wanted)

    def score(images):
        real, of_class = gan.discriminator(images)
        return real + of_class[torch.arange(16), wanted]

    loss = functional.softplus(-score(images[chosen] / 127.5 - 1)).mean()
    (loss + functional.softplus(score(fake.detach())).mean()).backward()
    adams[1].step()
    functional.softplus(-score(fake)).mean().backward()
    adams[0].step()
    for mine, theirs in zip(gan[:2], found[:2], strict=True):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_losses_that_are_not_finite_are_told():
    with pytest.raises(DivergenceError, match="after 20 updates with seed 0"):
        train_conditional(*stripes(8), 2, replace(SHORT, updates=20, learning_rate=1e30), seed=0)


def test_a_classifier_learns_and_is_repeated_by_its_seed():
    torch.manual_seed(0)
    train, test = stripes(40), stripes(100)
    options = {"updates": 30, "batch_size": 16}
    models = [train_classifier([train], 2, seed=s, **options) for s in (0, 0, 1)]
    assert accuracy(models[0], *test) > 0.95
    weights = [m.last.weight for m in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    still = [
        train_classifier([train], 2, updates=1, batch_size=2, seed=s, learning_rate=0.0)
        for s in (0, 1)
    ]
    assert not torch.equal(still[0].last.weight, still[1].last.weight)  # the first weights differ
    wrong = test[0], 1 - test[1]
    assert accuracy(models[0], *wrong) < 0.05
    assert accuracy(models[0], test[0][:3], torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_sources_share_each_batch(monkeypatch):
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, x: seen.append(x) or forward(self, x))
    dark = torch.zeros(3, 1, 16, 16, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)
    bright = dark[0] + 255, dark[1] + 1
    train_classifier([dark, bright], 2, updates=2, batch_size=10, seed=0)
    for batch in seen:
        assert batch[:, 0, 0, 0].tolist() == [-1.0] * 5 + [1.0] * 5
    seen.clear()
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16), torch.tensor([0])
    train_classifier([image], 2, updates=1, batch_size=8, seed=0, shift=0.25)
    assert len({tuple(x.flatten().tolist()) for x in seen[0]}) > 4


def test_shifts_move_whole_pixels_and_repeat_edges():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    rng = torch.Generator().manual_seed(0)
    found = shifted(image.repeat(200, 1, 1, 1), 0.25, rng)
    padded = functional.pad(image, (2, 2, 2, 2), mode="replicate")
    windows = {
        (row, column): padded[0, 0, row : row + 8, column : column + 8]
        for row in range(5)
        for column in range(5)
    }
    which = [k for x in found for k, w in windows.items() if torch.equal(x[0], w)]
    assert len(which) == 200
    assert set(which) == set(windows)
    assert torch.equal(shifted(image, 0.0, rng), image)
    free = image.clone().requires_grad_()
    shifted(free, 0.25, rng).sum().backward()
    assert free.grad.sum() == 64


def test_images_are_turned_and_stretched_within_bounds():
    image = torch.zeros(1, 1, 33, 33)
    image[..., 16, 4:29] = 1  # a line of 25 pixels through the centre
    rng = torch.Generator().manual_seed(0)
    found = moved(image.repeat(300, 1, 1, 1), 0.0, 20.0, 0.2, rng)[:, 0]
    rows, columns = (torch.arange(33.0) - 16).expand(33, 33).T, torch.arange(33.0) - 16
    total = found.sum((1, 2))
    angles = torch.atan2(
        (found * rows * columns).sum((1, 2)), (found * columns * columns).sum((1, 2))
    ).rad2deg()
    assert angles.abs().max() < 25  # stretching turns a line a little more
    assert angles.max() > 14
    assert angles.min() < -14
    lengths = (found * columns.square()).sum((1, 2)).div(total).mul(12).sqrt()
    assert 25 / 1.2 * 0.93 < lengths.min() < 23
    assert 27 < lengths.max() < 25 / 0.8 * 1.03
    still = moved(image, 0.0, 0.0, 0.0, rng)
    assert torch.equal(still, image)
    one, other = (moved(image, 0.1, 5.0, 0.1, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)


def test_a_seed_fixes_every_number_and_the_test_set_is_only_tested():
    torch.manual_seed(0)
    pairs = [stripes(30), stripes(20)]
    data = LabelledData(*(ImageData("stripes", *pair) for pair in pairs), ("above", "below"))
    options = AugmentOptions(6, per_class=4, updates=4, generator=replace(SHORT, updates=3))
    results = [run_seed(data, options, seed) for seed in (5, 5, 6)]
    assert list(results[0].accuracies) == [m for m in METHODS if m != "pseudo-labels"]
    assert results[0].accuracies == results[1].accuracies
    assert torch.equal(results[0].images, results[1].images)
    assert not torch.equal(results[0].images, results[2].images)
    other = replace(data, test=replace(data.test, images=255 - data.test.images))
    assert torch.equal(run_seed(other, options, 5).images, results[0].images)


def test_every_phase_shows_its_progress():
    phases = []

    def progress(title, steps):
        phases.append((title, steps))
        return silent(title, steps)

    data = LabelledData(*(ImageData("s", *stripes(n)) for n in (70, 20)), ("above", "below"))
    short = replace(SHORT, updates=3)
    options = AugmentOptions(6, per_class=4, updates=4, pseudo_updates=2, generator=short)
    run_seed(data, options, 0, progress=progress)
    sgan = [("sgan", 2), ("predictions", 1), ("predictions", 1)]
    classifiers = [("classifier", 4), ("predictions", 1)] * 5
    assert phases == [*sgan, ("conditional DCGAN", 3), *classifiers]


def test_the_generator_learns_from_pseudo_labels_of_all_images(monkeypatch):
    pairs = [stripes(120), stripes(20)]
    data = LabelledData(*(ImageData("stripes", *pair) for pair in pairs), ("above", "below"))
    options = AugmentOptions(
        6, per_class=4, updates=1, pseudo_updates=40, generator=replace(SHORT, updates=1)
    )
    seen = []

    def spy(images, labels, *others, **more):
        seen.append((images, labels))
        return train_conditional(images, labels, *others, **more)

    monkeypatch.setattr(experiment, "train_conditional", spy)
    result = run_seed(data, options, 0)
    assert tuple(result.accuracies) == tuple(METHODS)
    (images, labels), *_ = seen
    assert torch.equal(images, data.train.images)
    assert (labels == data.train.labels).float().mean() > 0.9
    assert result.accuracies["pseudo-labels"] > 0.9
    hidden = replace(data.train, labels=data.train.labels.clone())
    known = few_labels(data.train.labels, 6, 0)
    others = torch.ones(120, dtype=torch.bool)
    others[known] = False
    hidden.labels[others] = -1  # labels that the sgan must not see
    monkeypatch.setattr(experiment, "few_labels", lambda *_: known)
    run_seed(replace(data, train=hidden), options, 0)
    assert torch.equal(seen[0][1], seen[1][1])


def test_intervals_are_students():
    stats = pytest.importorskip("scipy.stats")
    assert summarise([dict.fromkeys(METHODS, 0.5)])[4]["compared with"] == "real, shifted"
    found = [{"real": 0.1 * k, "generated": 0.1 * k + d} for k, d in enumerate([0.02, 0.05, 0.03])]
    first, second = summarise(found)
    assert (first["method"], first["difference"], first["low"]) == ("real", None, None)
    assert first["accuracy"] == pytest.approx(0.1)
    assert first["deviation"] == pytest.approx(0.1)
    interval = stats.ttest_rel(*([f[name] for f in found] for name in ("generated", "real")))
    bounds = interval.confidence_interval(0.95)
    assert second["difference"] == pytest.approx(0.1 / 3)
    assert (second["low"], second["high"]) == pytest.approx((bounds.low, bounds.high))
    assert summarise(found[:1])[1]["low"] is None


def test_a_folder_of_images_is_read_by_torchvision_and_by_us(tmp_path):
    from torchvision.datasets import ImageFolder

    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1, 1])
    save_image_folder(images, labels, ("bag", "t-shirt/top"), tmp_path)
    assert (tmp_path / "bag" / "00001.png").is_file()
    read = ImageFolder(str(tmp_path))
    assert read.classes == ["bag", "t-shirt-top"]
    assert read.targets == [0, 0, 1, 1, 1]
    ours = load_images(f"folder:{tmp_path}", image_size=8)
    assert torch.equal(ours.images, images[[0, 2, 1, 3, 4]])
    assert ours.labels.tolist() == read.targets


def test_pictures_have_a_row_a_class_and_a_panel_a_record(tmp_path):
    pytest.importorskip("matplotlib")
    image_module = pytest.importorskip("PIL.Image")
    images = torch.zeros(9, 1, 16, 16, dtype=torch.uint8)
    images[6:] = 255
    save_class_grid(images, torch.tensor([0] * 6 + [1] * 3), tmp_path / "grid.png")
    with image_module.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 68 + 4, 2 * 68 + 4)
        assert [grid.convert("L").getpixel((20, y)) for y in (20, 90)] == [0, 255]
    seeds = [{"accuracies": {"real": 0.5, "generated": 0.6}}]
    table = summarise([row["accuracies"] for row in seeds])
    record = Record("augment", "", {"data": "digits", "labels": 20}, table, seeds, 1.0)
    widths = []
    for count in (1, 2):
        plot_accuracies([record] * count, tmp_path / "plot.png")
        with image_module.open(tmp_path / "plot.png") as plot:
            widths.append(plot.size[0])
    assert widths[1] - widths[0] == 400
