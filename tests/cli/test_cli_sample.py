"""`ganfast sample`: what a trained run gives again, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from ganfast.cli import main  # noqa: E402
from ganfast.models import slerp  # noqa: E402
from ganfast.training import load_run  # noqa: E402
from ganfast.training.figures import save_animation  # noqa: E402


@pytest.fixture(scope="module", params=[[], ["--ema", "0.5"]], ids=["weights", "average"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    images = numpy.random.default_rng(0).integers(0, 256, (16, 16, 16), dtype=numpy.uint8)
    numpy.savez(out / "images.npz", x=images)
    words = ["--data", f"npz:{out / 'images.npz'}", "--image-size", "16", "--width", "4"]
    words += ["--latent", "6", "--batch-size", "8", "--steps", "3", *request.param]
    assert main(["train", "--out", str(out / "run"), *words]) == 0
    return out / "run"


def test_draws_samples_and_ways_between_them(trained, tmp_path, capsys):
    assert main(["sample", str(trained), "--out", str(tmp_path / "new"), "--count", "9"]) == 0
    assert "generator of step 3" in capsys.readouterr().out
    with Image.open(tmp_path / "new" / "samples.png") as grid:
        assert grid.size == (8 * 68 + 4, 2 * 68 + 4)
    with Image.open(tmp_path / "new" / "interpolation.png") as grid:
        assert grid.size == (8 * 68 + 4, 8 * 68 + 4)
    with Image.open(tmp_path / "new" / "interpolation.gif") as animation:
        assert animation.size == (64, 64)


def test_an_animation_has_every_image(tmp_path):
    images = torch.linspace(-1, 1, 7).reshape(7, 1, 1, 1).expand(7, 3, 16, 16)
    save_animation(images, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.n_frames, film.info["loop"], film.size) == (7, 0, (64, 64))
        for index in range(7):
            film.seek(index)
            grey = film.convert("L").getpixel((5, 5))
            assert grey == pytest.approx(255 * index / 6, abs=2)


def test_a_seed_repeats_the_samples(trained, tmp_path):
    found = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["sample", str(trained), "--out", str(tmp_path / name), "--seed", seed]) == 0
        found.append((tmp_path / name / "samples.png").read_bytes())
    assert found[0] == found[1] != found[2]


def test_the_average_is_taken_where_there_is_one(trained):
    gan, state = load_run(trained)
    average = state["step_state"]["average"]
    expected = state["generator"] if average is None else average["generator"]
    for name, value in gan.generator.state_dict().items():
        assert torch.equal(value, expected[name])
    assert not gan.generator.training
    if average is not None:
        assert not torch.equal(expected["main.0.weight"], state["generator"]["main.0.weight"])


def test_folders_without_a_run_are_refused(tmp_path, capsys):
    assert main(["sample", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_an_unwritable_folder_is_refused(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["sample", str(trained), "--out", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_slerp_keeps_to_the_sphere():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 100, 1, 1).unbind()
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    shares = torch.linspace(0, 1, 5)
    middle = slerp(a, b, shares)
    lengths = [t.flatten(1).norm(dim=1) for t in (a, middle, b)]
    torch.testing.assert_close(lengths[1], torch.lerp(lengths[0], lengths[2], shares))
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    half = slerp(a, b, 0.5).flatten(1)
    angles = [torch.cosine_similarity(half, t.flatten(1)) for t in (a, b)]
    torch.testing.assert_close(angles[0], angles[1])
    with pytest.raises(ValueError, match="one shape"):
        slerp(a, b[:2], 0.5)
