"""Quality measured during training, the best checkpoint, warnings, and TensorBoard's events."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy
import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)

from ganfast.cli import main  # noqa: E402
from ganfast.models import dcgan  # noqa: E402
from ganfast.training import (  # noqa: E402
    DataError,
    ImageData,
    Quality,
    Trainer,
    TrainingOptions,
    TrainingWarning,
    frechet_distance,
    load_checkpoint,
    load_newest,
)
from ganfast.training.health import ALIKE, FIRST_STEP, WON_ROWS, Health  # noqa: E402


@pytest.fixture
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the classifier hardly at all, where its features do not matter."""
    monkeypatch.setattr("ganfast.training.quality.UPDATES", 10)


@pytest.fixture
def squares() -> ImageData:
    """Bright squares on the left, label 0, or on the right, label 1, with noise."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 40, (300, 1, 16, 16), generator=rng, dtype=torch.uint8)
    labels = torch.arange(300) % 2
    images[labels == 0, :, 4:12, 1:7] += 200
    images[labels == 1, :, 4:12, 9:15] += 200
    return ImageData("squares", images, labels)


def as_images(data: ImageData) -> torch.Tensor:
    return data.images / 127.5 - 1


# --- the distance ---


def test_distance_of_known_normal_distributions():
    """Compare with the closed form for covariances that commute."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, 3, generator=rng, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(x.T))
    ).T  # exactly N(0, 1)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.0, -1.0])
    expected = (shift.square() + (scale - 1).square()).sum().item()
    assert frechet_distance(x, x * scale + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_distance_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    rng = torch.Generator().manual_seed(1)
    a, b = (torch.randn(50, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    b = b @ torch.randn(6, 6, generator=rng, dtype=torch.float64)
    covs = [numpy.cov(x.numpy(), rowvar=False) for x in (a, b)]
    root = linalg.sqrtm(covs[0] @ covs[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected += numpy.trace(covs[0] + covs[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shapes", [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5,), (5,))])
def test_features_that_cannot_be_compared(shapes):
    with pytest.raises(ValueError, match=r"needs features \[N, F\]"):
        frechet_distance(*(torch.zeros(shape) for shape in shapes))


def test_quality_tells_good_images_from_bad(squares):
    quality = Quality(squares)
    real = as_images(squares)
    worse = real + 0.5 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    one_kind = real[squares.labels == 0].repeat(2, 1, 1, 1)
    grey = torch.zeros_like(real)
    distances = [
        quality(lambda n, images=images: images[torch.arange(n)])
        for images in (real, worse.clamp(-1, 1), one_kind, grey)
    ]
    assert quality.floor < min(distances[1:]) / 10
    assert distances[0] < min(distances[1:]) / 10


@pytest.mark.usefixtures("few_updates")
def test_quality_repeats_and_leaves_random_numbers_alone(squares):
    state = torch.get_rng_state()
    floors = {Quality(squares).floor for _ in range(2)}
    assert len(floors) == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("labels", [None, torch.zeros(300, dtype=torch.int64)])
def test_quality_needs_labels(squares, labels):
    with pytest.raises(DataError, match="no labels of two classes"):
        Quality(ImageData("squares", squares.images, labels))


# --- in a run ---


def run(data: ImageData, out: Path, **options: object) -> Trainer:
    torch.manual_seed(0)
    gan = dcgan(image_size=16, channels=1, width=4, latent=6)
    defaults = {"steps": 12, "batch_size": 8, "log_every": 4, "checkpoint_every": 6}
    trainer = Trainer(gan, data, TrainingOptions(**{**defaults, **options}), out=out)
    trainer.run()
    return trainer


def quality_rows(out: Path) -> list[list[str]]:
    with (out / "quality.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.usefixtures("few_updates")
def test_the_best_checkpoint_is_kept(squares, tmp_path, monkeypatch):
    distances = iter([5.0, 2.0, 3.0, 2.5])
    monkeypatch.setattr(Quality, "__call__", lambda self, generate: next(distances))
    run(squares, tmp_path, quality_every=3)
    assert quality_rows(tmp_path)[1:] == [["3", "5.0"], ["6", "2.0"], ["9", "3.0"], ["12", "2.5"]]
    assert load_checkpoint(tmp_path / "best.safetensors")["step"] == 6


@pytest.mark.usefixtures("few_updates")
def test_measuring_changes_no_bit_of_a_run(squares, tmp_path):
    for name, every in (("measured", 4), ("plain", 0)):
        run(squares, tmp_path / name, quality_every=every)
    measured, plain = (load_newest(tmp_path / name)[1] for name in ("measured", "plain"))
    for name, value in plain["generator"].items():
        assert torch.equal(measured["generator"][name], value), name
    assert torch.equal(measured["rng"], plain["rng"])
    assert not (tmp_path / "plain" / "quality.csv").exists()
    assert len(quality_rows(tmp_path / "measured")) == 4


@pytest.mark.usefixtures("few_updates")
def test_a_resumed_run_repeats_no_measurement(squares, tmp_path):
    whole = run(squares, tmp_path / "whole", quality_every=2)
    run(squares, tmp_path / "again", quality_every=2, steps=8)
    (tmp_path / "again" / "checkpoint-00000008.safetensors").unlink()
    torch.manual_seed(5)
    gan = dcgan(image_size=16, channels=1, width=4, latent=6)
    resumed = Trainer(gan, squares, whole.options, out=tmp_path / "again")
    resumed.restore(load_newest(tmp_path / "again")[1])
    assert resumed.step == 6
    resumed.run()
    assert quality_rows(tmp_path / "again") == quality_rows(tmp_path / "whole")
    best = [load_checkpoint(tmp_path / name / "best.safetensors") for name in ("whole", "again")]
    assert best[0]["step"] == best[1]["step"]


def command(tmp_path: Path, data: ImageData, out: str, *words: str) -> int:
    numpy.savez(
        tmp_path / "images.npz", x=data.images.numpy(), **(
            {} if data.labels is None else {"y": data.labels.numpy()}
        ),
    )  # fmt: skip
    tiny = ["--image-size", "16", "--width", "4", "--latent", "6", "--batch-size", "8"]
    source = ["--data", f"npz:{tmp_path / 'images.npz'}", "--out", str(tmp_path / out)]
    return main(["train", *source, *tiny, "--steps", "6", "--log-every", "2", *words])


@pytest.mark.usefixtures("few_updates")
def test_the_command_measures_where_there_are_labels(squares, tmp_path, capsys):
    assert command(tmp_path, squares, "labelled", "--quality-every", "3") == 0
    assert [row[0] for row in quality_rows(tmp_path / "labelled")] == ["step", "3", "6"]
    assert "between halves of the real images" in capsys.readouterr().out
    best = tmp_path / "labelled" / "best.safetensors"
    assert main(["sample", str(best), "--count", "4"]) == 0
    assert f"generator of step {load_checkpoint(best)['step']}" in capsys.readouterr().out
    assert (tmp_path / "labelled" / "interpolation.gif").exists()
    bare = ImageData("bare", squares.images)
    assert command(tmp_path, bare, "bare") == 0
    assert not (tmp_path / "bare" / "quality.csv").exists()
    assert command(tmp_path, bare, "refused", "--quality-every", "3") == 2
    assert "no labels" in capsys.readouterr().err


# --- warnings ---


def warnings_of(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(issubclass(warning.category, TrainingWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_discriminator_that_has_won_is_warned_of_once():
    real = torch.randn(8, 1, 4, 4)

    def watch(kind, losses):
        health = Health(real, kind)
        return warnings_of(
            lambda: [health.watch_loss(step, loss) for step, loss in enumerate(losses)]
        )

    (message,) = watch("bce", [0.7] + [0.001] * 20)
    assert f"at step {WON_ROWS} the discriminator's loss" in message
    assert watch("bce", [0.001] * (WON_ROWS - 1) + [0.7] + [0.001] * (WON_ROWS - 1)) == []
    assert watch("wasserstein", [-3.0] * 20) == []


def test_images_that_are_all_alike_are_warned_of_once():
    real = torch.randn(64, 1, 8, 8)
    alike, varied = real[:1] + 0.5 * ALIKE * real, real.flip(0)

    def watch(*seen):
        health = Health(real, "bce")
        return warnings_of(lambda: [health.watch_images(step, images) for step, images in seen])

    late = range(FIRST_STEP, FIRST_STEP + 9)
    (message,) = watch(*((step, alike) for step in late))
    assert f"at step {FIRST_STEP + 1} generated images are nearly all alike" in message
    assert watch(*((step, varied) for step in late)) == []
    assert watch(*((step, [alike, varied][step % 2]) for step in late)) == []
    assert watch(*((step, alike) for step in range(9))) == []  # of a fresh generator


@pytest.mark.usefixtures("few_updates")
def test_the_trainer_shows_what_it_watches(squares, tmp_path, monkeypatch):
    monkeypatch.setattr("ganfast.training.health.WON", 1e9)
    with pytest.warns(TrainingWarning, match="the discriminator's loss has been below"):
        run(squares, tmp_path, log_every=1)


# --- TensorBoard ---


@pytest.mark.usefixtures("few_updates")
def test_tensorboard_has_the_metrics_and_the_samples(squares, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(squares, tmp_path, tensorboard=True, quality_every=6, sample_every=6)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("d_loss", "g_loss", "real_score", "data_ms", "images_per_second"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(int(r["step"]), pytest.approx(float(r[name]), rel=1e-6)) for r in rows]
    assert [event.step for event in events.Scalars("frechet_distance")] == [6, 12]
    assert [event.step for event in events.Images("samples")][:2] == [6, 12]
