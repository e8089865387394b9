"""`ganfast edit`: the files of each action, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

for package in ("torchvision", "matplotlib", "tqdm", "scipy"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from ganfast.cli import main  # noqa: E402

QUICK = ["--steps", "3", "--restarts", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    images = numpy.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=numpy.uint8)
    numpy.savez(out / "images.npz", x=images)
    words = ["--data", f"npz:{out / 'images.npz'}", "--image-size", "16", "--width", "4"]
    words += ["--latent", "6", "--batch-size", "8", "--steps", "3", "--device", "cpu"]
    assert main(["train", "--out", str(out / "run"), *words]) == 0
    return out / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of several sizes, colours and formats."""
    out = tmp_path_factory.mktemp("photos")
    rng = numpy.random.default_rng(0)
    shapes = {"a.png": (16, 16, 3), "b.jpg": (40, 23, 3), "c.png": (9, 30)}
    for name, shape in shapes.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=numpy.uint8)).save(out / name)
    return out


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_project_writes_pairs_and_vectors(trained, photos, tmp_path, capsys):
    assert main(["edit", "project", str(trained), str(photos), "--out", str(tmp_path), *QUICK]) == 0
    said = capsys.readouterr().out
    assert "b.jpg" in said
    assert "squared error" in said
    assert numpy.load(tmp_path / "latents.npy").shape == (3, 6, 1, 1)
    assert size(tmp_path / "project.png") == (3 * 68 + 4, 2 * 68 + 4)
    many = [str(photos / "c.png")] * 10
    assert main(["edit", "project", str(trained), *many, "--out", str(tmp_path), *QUICK]) == 0
    assert size(tmp_path / "project.png") == (8 * 68 + 4, 4 * 68 + 4)


def test_interpolate_writes_a_strip_and_a_film(trained, photos, tmp_path):
    words = [str(trained), str(photos), "--out", str(tmp_path), *QUICK]
    assert main(["edit", "interpolate", *words]) == 0
    assert size(tmp_path / "interpolate.png") == (10 * 68 + 4, 2 * 68 + 4)
    with Image.open(tmp_path / "interpolate.gif") as film:
        assert film.size == (64, 64)
        durations = []
        for index in range(film.n_frames):  # frames alike are written as one that lasts longer
            film.seek(index)
            durations.append(film.info["duration"])
        assert sum(durations) == 80 * (2 * (6 + 16) + 6)


@pytest.mark.parametrize("mask", ["center", "random", "left", "file"])
def test_inpaint_writes_five_rows(trained, photos, tmp_path, capsys, mask):
    if mask == "file":
        mask = str(tmp_path / "mask.png")
        picture = Image.new("L", (16, 16))
        picture.paste(255, (0, 0, 4, 16))
        picture.save(mask)
    words = [str(trained), str(photos), "--out", str(tmp_path), "--mask", mask, *QUICK]
    assert main(["edit", "inpaint", *words]) == 0
    assert "mean image" in capsys.readouterr().out
    assert size(tmp_path / "inpaint.png") == (3 * 68 + 4, 5 * 68 + 4)
    with Image.open(tmp_path / "inpaint.png") as grid:
        pixels = numpy.asarray(grid).astype(int)
    original, masked, completed, blended, _ = (pixels[y : y + 64, 4:68] for y in range(4, 344, 68))
    known = (masked == original).all(-1)
    assert 0.15 < known.mean() < 0.85
    assert (abs(masked[~known] - 128) <= 1).all()
    for filled in (completed, blended):
        assert (filled[known] == original[known]).all()
        assert (filled[~known] != masked[~known]).any()
    assert size(tmp_path / "inpaint-02.png") == (16, 16)


def test_upscale_writes_five_rows_and_compares_with_plain_enlargements(
    trained, photos, tmp_path, capsys
):
    words = [str(trained), str(photos), "--out", str(tmp_path), "--factor", "4", *QUICK]
    assert main(["edit", "upscale", *words]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("nearest", "bicubic", "generated", "corrected"))
    assert size(tmp_path / "upscale.png") == (3 * 68 + 4, 5 * 68 + 4)
    assert size(tmp_path / "upscale-02.png") == (16, 16)
    with Image.open(tmp_path / "upscale.png") as grid:
        nearest = numpy.asarray(grid)[72:136, 4:68]  # 16 pixels of the small image are one colour
    assert (nearest[:16, :16] == nearest[0, 0]).all()


def test_style_writes_a_row_an_image(trained, photos, tmp_path):
    pictures = []
    for share in ("0", "1"):
        words = [str(trained), str(photos), "--out", str(tmp_path), "--share", share, *QUICK]
        assert main(["edit", "style", *words]) == 0
        assert size(tmp_path / "style.png") == (6 * 68 + 4, 2 * 68 + 4)
        mixed = [tmp_path / f"style-{index:02d}.png" for index in range(2)]
        pictures.append([numpy.asarray(Image.open(path)).astype(int) for path in mixed])
    (first, second), (all_style, same) = pictures
    assert (first != second).any()
    assert abs(all_style - same).max() <= 1  # both are the last image


def test_a_seed_repeats_the_search_and_the_random_mask(trained, photos, tmp_path):
    pictures, masked = [], []
    for index, (mask, seed) in enumerate(
        [("center", "1"), ("center", "1"), ("center", "2"), ("random", "1"), ("random", "2")]
    ):
        out = tmp_path / str(index)
        words = [str(trained), str(photos), "--out", str(out), "--mask", mask, "--seed", seed]
        assert main(["edit", "inpaint", *words, *QUICK]) == 0
        pictures.append((out / "inpaint.png").read_bytes())
        with Image.open(out / "inpaint.png") as grid:
            masked.append(numpy.asarray(grid)[72:136])
    assert pictures[0] == pictures[1] != pictures[2]
    assert (masked[0] == masked[2]).all()
    assert (masked[3] != masked[4]).any()


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    action, *others = words
    assert main(["edit", action, *QUICK, *others]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_bad_images_are_refused(trained, photos, tmp_path, capsys):
    run = str(trained)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes((photos / "a.png").read_bytes()[:60])
    out = ["--out", str(tmp_path / "out")]
    assert "cannot be read as an image" in refused(
        ["project", run, str(tmp_path / "broken.png"), *out], capsys
    )
    assert "holds no images" in refused(["project", run, str(tmp_path / "empty"), *out], capsys)
    assert "no such image" in refused(["project", run, str(tmp_path / "no.png"), *out], capsys)
    assert "IMAGE" in refused(["project", run, *out], capsys)
    assert "at least two" in refused(["interpolate", run, str(photos / "a.png"), *out], capsys)
    assert "at least two" in refused(["style", run, str(photos / "a.png"), *out], capsys)
    for factor in ("1", "3", "32"):
        words = ["upscale", run, str(photos / "a.png"), "--factor", factor, *out]
        assert f"divide 16, the generator's side, got {factor}" in refused(words, capsys)
    words = ["style", run, str(photos), "--share", "1.5", *out]
    assert "must be from 0 to 1, got '1.5'" in refused(words, capsys)
    assert not (tmp_path / "out").exists()


def test_bad_runs_masks_and_folders_are_refused(trained, photos, tmp_path, capsys):
    run, image = str(trained), str(photos / "a.png")
    out = ["--out", str(tmp_path / "out")]
    assert "holds no checkpoint" in refused(["project", str(tmp_path), image, *out], capsys)
    assert "no mask 'middle'" in refused(["inpaint", run, image, "--mask", "middle", *out], capsys)
    assert "--device nonsense is not available" in refused(
        ["project", run, image, *out, "--device", "nonsense"], capsys
    )
    (tmp_path / "file").write_text("")
    assert "cannot write to" in refused(
        ["project", run, image, "--out", str(tmp_path / "file")], capsys
    )
