"""Anomaly detection: each score against its formula, what may influence it, files, the protocol."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from ganfast.applications.anomaly import (
    METHODS,
    DetectorOptions,
    evaluate,
    load_detector,
    save_detector,
    train_detector,
)
from ganfast.applications.anomaly.protocol import scored_part, table
from ganfast.applications.anomaly.scores import (
    LocalDensity,
    encoded_directions,
    encoding_loss,
    first_features,
    search_latent,
)
from ganfast.applications.labelled import LabelledData
from ganfast.models.dcgan import Discriminator
from ganfast.models.encoder import Encoder
from ganfast.training import CheckpointError, DataError, DivergenceError, ImageData
from ganfast.training.checkpoints import write_checkpoint
from ganfast.training.progress import silent

TINY = DetectorOptions(width=4, latent=6, steps=3, encoder_steps=2, search_steps=3, neighbours=5)


def bars(count: int, upright: bool, seed: int) -> torch.Tensor:
    """Draw one bright bar an image, uint8 ``[N, 1, 16, 16]``."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 40, (count, 1, 16, 16), generator=rng, dtype=torch.uint8)
    for image, place in zip(images, torch.randint(1, 13, (count,), generator=rng), strict=True):
        (image[0].T if upright else image[0])[place : place + 3] = 230
    return images


def two_classes(seed: int = 0) -> LabelledData:
    parts = [
        ImageData(
            "bars",
            torch.cat([bars(count, False, seed), bars(count, True, seed + 1)]),
            torch.arange(2).repeat_interleave(count),
        )
        for seed, count in ((seed, 60), (seed + 7, 25))
    ]
    return LabelledData(*parts, classes=("lying", "upright"))


class Paint(nn.Module):
    """A generator that repeats its latent vector: it can make even images only."""

    def forward(self, z):
        return z.expand(-1, 1, 16, 16)


def discriminator() -> Discriminator:
    return Discriminator(16, 1, 4).eval().requires_grad_(False)


def test_density_is_what_its_words_say():
    known, vectors = torch.randn(40, 7), torch.randn(9, 7)
    distances = torch.cdist(known.double(), known.double())
    own = distances.sort(1).values[:, 1:4].mean(1)  # the first is the vector itself
    away, nearest = torch.cdist(vectors.double(), known.double()).sort(1)
    expected = away[:, :3].mean(1) / own[nearest[:, :3]].mean(1)
    torch.testing.assert_close(
        LocalDensity(known, 3)(vectors).double(), expected, rtol=1e-4, atol=0
    )


def test_density_does_not_depend_on_the_scale_and_stays_finite_between_equal_images():
    known, vectors = torch.randn(40, 7), torch.randn(9, 7)
    scores = LocalDensity(known, 5)(vectors)
    torch.testing.assert_close(LocalDensity(known * 8, 5)(vectors * 8), scores)
    for same in (torch.ones(30, 7), torch.cat([torch.ones(30, 7), known])):
        found = LocalDensity(same, 5)(vectors)
        assert found.isfinite().all()
        assert (found > 0).all()


def test_search_weighs_pixels_and_features_and_goes_downhill():
    judge = discriminator()
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    options = {"latent": (1, 1, 1), "seed": 4}
    start = torch.randn(1, 1, 1, 1, generator=torch.Generator().manual_seed(4)).expand(images.shape)
    of_features = (judge.features(images) - judge.features(start)).abs().sum((1, 2, 3))
    expected = 0.9 * (images - start).abs().sum((1, 2, 3)) + 0.1 * of_features
    before = search_latent(Paint(), judge, images, steps=0, **options)
    torch.testing.assert_close(before, expected)
    after = search_latent(Paint(), judge, images, steps=30, **options)
    assert (after < before).all()


def test_search_finds_what_the_generator_can_make():
    even, striped = torch.full((1, 1, 16, 16), 0.6), torch.ones(1, 1, 16, 16)
    striped[..., ::2] = -1
    images = torch.cat([even, striped])
    found = search_latent(Paint(), discriminator(), images, latent=(1, 1, 1), steps=200, seed=0)
    assert found[0] < 10 < 200 < found[1]


def test_search_looks_at_each_image_alone():
    images = torch.rand(5, 1, 16, 16)
    options = {"latent": (1, 1, 1), "steps": 4, "seed": 0}
    judge = discriminator()
    together = search_latent(Paint(), judge, images, **options)
    alone = [search_latent(Paint(), judge, image[None], **options) for image in images]
    torch.testing.assert_close(together, torch.cat(alone))


def test_encoding_loss_is_pixels_and_features():
    judge, images = discriminator(), torch.rand(3, 1, 16, 16)
    encoder = nn.Sequential(nn.AvgPool2d(16))
    made = images.mean((2, 3), keepdim=True).expand(images.shape)
    expected = (images - made).square().mean((1, 2, 3))
    expected = expected + (judge.features(images) - judge.features(made)).square().mean((1, 2, 3))
    torch.testing.assert_close(encoding_loss(encoder, Paint(), judge, images), expected)


def test_first_features_are_the_first_layer_pooled():
    judge = Discriminator(32, 1, 4).requires_grad_(False)
    images = torch.randn(2, 1, 32, 32)
    maps = nn.functional.leaky_relu(judge.main[0](images), 0.2)
    expected = maps.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(first_features(judge, images), expected)


def test_encoded_directions_are_the_second_layer_of_length_one():
    encoder = Encoder(32, 1, 4, 6).eval().requires_grad_(False)
    images = torch.randn(2, 1, 32, 32)
    maps = nn.functional.leaky_relu(encoder.main[0](images), 0.2)
    maps = encoder.main[3](encoder.main[2](maps))
    expected = maps.flatten(1) / maps.flatten(1).norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoded_directions(encoder, images), expected)
    assert encoded_directions(encoder, images).shape == (2, 4 * 128)


def test_a_seed_fixes_every_score():
    normal = ImageData("bars", bars(50, False, 0))
    seen = bars(4, True, 5)
    before = torch.get_rng_state()
    first = train_detector(normal, TINY, methods=tuple(METHODS))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = train_detector(normal, TINY, methods=tuple(METHODS))
    other = train_detector(
        normal, DetectorOptions(**{**vars(TINY), "seed": 1}), methods=tuple(METHODS)
    )
    for method in METHODS:
        scores = first.score(seen, method)
        assert torch.equal(scores, again.score(seen, method)), method
        assert not torch.equal(scores, other.score(seen, method)), method


def test_the_encoder_learns():
    normal = ImageData("bars", bars(50, False, 0))
    losses = []
    for steps in (1, 60):
        options = DetectorOptions(**{**vars(TINY), "steps": 100, "encoder_steps": steps})
        detector = train_detector(normal, options, methods=("encoder",))
        losses.append(detector.score(detector.held_out, "encoder").mean())
    assert losses[1] < 0.8 * losses[0]


def test_held_out_images_are_in_nothing():
    images = bars(50, False, 0)
    detector = train_detector(ImageData("bars", images), TINY)
    assert (len(detector.known), len(detector.held_out)) == (45, 5)
    rows = {tuple(image.flatten().tolist()) for image in detector.known}
    assert not rows & {tuple(image.flatten().tolist()) for image in detector.held_out}
    of_known = detector.score(detector.held_out, "pixels").sort().values
    below = detector.share_below(torch.stack([of_known[0], of_known[3] + 1e-6]), "pixels")
    assert below.tolist() == pytest.approx([0.0, 0.8])


def test_only_the_normal_training_images_matter():
    data = two_classes()
    spoiled = two_classes()
    spoiled.train.images[spoiled.train.labels == 1] = 0
    spoiled.test.images[:] = 7
    found = [
        evaluate(each, "lying", TINY, methods=("features", "encoder"), search_images=9)[0]
        for each in (data, spoiled)
    ]
    for method in ("features", "encoder"):
        a, b = (detector.score(data.test.images, method) for detector in found)
        assert torch.equal(a, b)
    assert torch.equal(found[0].known, found[1].known)


def test_auroc_counts_pairs_in_the_right_order():
    data = two_classes()
    detector, outcome = evaluate(data, "upright", TINY, methods=tuple(METHODS), search_images=20)
    anomalous = data.test.labels == 0
    for method in ("encoder", "encoded", "features", "pixels"):
        scores = detector.score(data.test.images, method)
        pairs = scores[anomalous][:, None] - scores[~anomalous]
        share = ((pairs > 0).float() + (pairs == 0).float() / 2).mean()
        assert outcome.auroc[method] == pytest.approx(float(share))
    assert outcome.auroc["features"] > 0.9
    others = ("encoder", "encoded", "features", "pixels")
    assert outcome.scored == {"latent": 20} | dict.fromkeys(others, 50)


def test_every_phase_shows_its_progress():
    phases = []

    def progress(title, steps):
        phases.append((title, steps))
        return silent(title, steps)

    evaluate(two_classes(), "lying", TINY, methods=METHODS, search_images=9, progress=progress)
    normal = [("of normal images", 1), ("distances of normal images", 1), ("scores", 1)]
    densities = [
        (title if title.startswith("distances") else f"{method} {title}", steps)
        for method in ("encoded", "features", "pixels")
        for title, steps in normal
    ]
    assert phases == [
        ("GAN", 3), ("encoder", 2), ("latent search", 3), ("encoder scores", 1), *densities
    ]  # fmt: skip


def test_a_table_has_means_over_seeds_and_classes():
    values = {("a", 0): 0.5, ("b", 0): 0.7, ("a", 1): 0.7, ("b", 1): 0.9, ("a", 2): 0.3}
    outcomes = [
        {"normal": name, "seed": seed, "auroc": {"features": auroc}}
        for (name, seed), auroc in values.items()
    ]
    rows = table(outcomes)
    assert [(row["normal"], row["features"], row["seeds"]) for row in rows] == [
        ("a", 0.5, 3),
        ("b", 0.8, 2),
        ("mean", 0.7, 2),  # of seeds 0 and 1, which have both classes
    ]
    assert rows[2]["features deviation"] == pytest.approx(numpy.std([0.6, 0.8], ddof=1), abs=1e-4)
    rows = table([outcomes[0], outcomes[3]])
    assert [row["normal"] for row in rows] == ["a", "b"]  # no seed has both


def test_the_worst_images_are_those_that_mislead_a_score_most():
    data = two_classes()
    methods = ("pixels", "latent")
    detector, outcome = evaluate(data, "lying", TINY, methods=methods, search_images=20)
    for method in methods:
        part = scored_part(data, method, 20).tolist()
        scores = dict(
            zip(part, detector.score(data.test.images[part], method).tolist(), strict=True)
        )
        ranked = sorted(scores, key=scores.__getitem__)
        normal = [index for index in ranked if data.test.labels[index] == 0]
        anomalous = [index for index in ranked if data.test.labels[index] == 1]
        assert outcome.worst[method] == (normal[::-1][:6], anomalous[:6])


def test_a_file_gives_the_same_scores(tmp_path):
    detector = train_detector(ImageData("bars", bars(50, False, 0)), TINY, methods=("encoder",))
    save_detector(detector, tmp_path / "detector.safetensors")
    before = torch.get_rng_state()
    loaded = load_detector(tmp_path / "detector.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.options == detector.options
    images = bars(3, True, 1)
    for method in METHODS:
        scores = detector.score(images, method)
        assert torch.equal(loaded.score(images, method), scores), method
        assert torch.equal(loaded.share_below(scores, method), detector.share_below(scores, method))
    assert [file.name for file in tmp_path.iterdir()] == ["detector.safetensors"]


def test_files_that_are_no_detector(tmp_path):
    path = tmp_path / "detector.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_detector(path)
    detector = train_detector(ImageData("bars", bars(50, False, 0)), TINY)
    save_detector(detector, path)
    whole = path.read_bytes()
    for size in (0, 5, 300, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_detector(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="checksum"):
        load_detector(path)
    write_checkpoint(path, 0, {"generator": {}})
    with pytest.raises(CheckpointError, match="is no detector"):
        load_detector(path)
    detector.options = DetectorOptions(**{**vars(detector.options), "width": 5})
    save_detector(detector, path)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_detector(path)


def test_weights_that_are_not_finite_are_refused():
    options = DetectorOptions(**{**vars(TINY), "learning_rate": float("inf")})
    with pytest.raises(DivergenceError, match="weights of the generator are not finite"):
        train_detector(ImageData("bars", bars(50, False, 0)), options)


def test_what_cannot_be_detected_is_refused():
    data = two_classes()
    with pytest.raises(DataError, match="no class 'round'; it has lying, upright"):
        evaluate(data, "round", TINY, methods=("pixels",), search_images=9)
    with pytest.raises(DataError, match="30 normal images are too few, give 40"):
        train_detector(ImageData("bars", bars(30, False, 0)), TINY)
    with pytest.raises(DataError, match="need both normal and anomalous"):
        evaluate(data, "lying", TINY, methods=("latent",), search_images=1)
    detector = train_detector(ImageData("bars", bars(50, False, 0)), TINY)
    with pytest.raises(DataError, match="without an encoder"):
        detector.score(bars(1, False, 0), "encoder")
    with pytest.raises(DataError, match="train one with the method encoded"):
        detector.score(bars(1, False, 0), "encoded")
    with pytest.raises(ValueError, match="method must be one of"):
        detector.score(bars(1, False, 0), "guess")
    with pytest.raises(DataError, match=r"images \[1, 16, 16\], got \[3, 16, 16\]"):
        detector.score(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "pixels")
