"""`ganfast anomaly`: its files, its CSV, and what it refuses."""

from __future__ import annotations

import csv

import numpy
import pytest

for package in ("torchvision", "matplotlib", "sklearn", "safetensors"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

import torch  # noqa: E402

from ganfast.applications.anomaly import load_detector  # noqa: E402
from ganfast.applications.records import Record  # noqa: E402
from ganfast.cli import anomaly, main  # noqa: E402

SMALL = ["--image-size", "16", "--width", "4", "--latent", "6", "--steps", "2"]
SMALL += ["--encoder-steps", "2", "--search-steps", "2", "--search-images", "20"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = numpy.random.default_rng(0)
    images = rng.integers(0, 90, (140, 16, 16), dtype=numpy.uint8)
    labels = numpy.arange(140) % 2
    images[labels == 1, 4:9] += 120
    path = tmp_path_factory.mktemp("data") / "images.npz"
    numpy.savez(path, x=images, y=labels)
    return path


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    words = ["--data", f"npz:{source}", "--seeds", "0", "1", "--out", str(out), *SMALL]
    assert main(["anomaly", *words]) == 0
    return out


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = numpy.random.default_rng(1)
    for name, size in (("b.png", 16), ("a.png", 24), ("more/c.png", 40)):
        pixels = rng.integers(0, 255, (size, size), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def refused(words, capsys):
    assert main(["anomaly", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_run_leaves_a_record_and_pictures(finished):
    record = Record.load(finished / "record.json")
    assert [row["normal"] for row in record.table] == ["0", "1", "mean"]
    assert len(record.seeds) == 4
    assert record.options["search_images"] == 20
    assert record.command.endswith(
        "--seeds 0 1 --image-size 16 --width 4 --latent 6 --steps 2 "
        "--encoder-steps 2 --search-steps 2 --search-images 20"
    )
    first = [row["auroc"]["pixels"] for row in record.seeds if row["normal"] == "0"]
    assert record.table[0]["pixels"] == pytest.approx(sum(first) / 2, abs=1e-4)
    assert record.table[0]["pixels"] > 0.9
    assert str(finished) not in (finished / "record.json").read_text().replace("npz:", "")
    for name in ("auroc.png", "worst.png"):
        with Image.open(finished / name) as picture:
            assert min(picture.size) > 50
    # Of the first seed alone.
    assert load_detector(finished / "detector-0.safetensors").options.seed == 0
    assert (finished / "detector-1.safetensors").is_file()


def test_a_seed_repeats_the_run(finished, source, tmp_path, capsys):
    words = ["--data", f"npz:{source}", "--seeds", "1", "--normal", "1", *SMALL]
    assert main(["anomaly", *words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    (again,) = Record.load(tmp_path / "record.json").seeds
    (before,) = (
        row
        for row in Record.load(finished / "record.json").seeds
        if (row["normal"], row["seed"]) == ("1", 1)
    )
    assert again["auroc"] == before["auroc"]
    assert f"{again['auroc']['features']:.4f}" in printed
    assert "±" not in printed  # one seed has no deviation
    assert (tmp_path / "detector-1.safetensors").is_file()


@pytest.mark.parametrize("method", ["features", "latent"])
def test_a_folder_is_scored(finished, photos, tmp_path, capsys, method):
    model, out = finished / "detector-1.safetensors", tmp_path / "scores.csv"
    words = ["--model", str(model), "--score", str(photos), "--methods", method]
    assert main(["anomaly", *words, "--out", str(out)]) == 0
    assert "3 images scored" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.png", "b.png", "more/c.png"]
    detector = load_detector(model)
    with Image.open(photos / "b.png") as image:
        pixels = torch.from_numpy(numpy.asarray(image).copy())[None, None]
    score = detector.score(pixels, method)
    assert float(rows[1]["score"]) == pytest.approx(float(score), rel=1e-4)
    share = detector.share_below(score, method)
    assert float(rows[1]["share of normal images below"]) == pytest.approx(float(share), abs=1e-3)


def test_a_folder_of_normal_images_needs_no_labels(photos, tmp_path, capsys):
    for number in range(40):
        Image.new("RGB", (20, 20), (number, 2 * number, 90)).save(photos / f"{number}.jpg")
    words = ["--data", f"folder:{photos}", "--all-normal", *SMALL, "--out", str(tmp_path / "run")]
    assert main(["anomaly", *words]) == 0
    assert "trained on 39 images" in capsys.readouterr().out
    detector = load_detector(tmp_path / "run" / "detector.safetensors")
    assert detector.known.shape[1:] == (3, 16, 16)


def without_seconds(record):
    return [{**row, "seconds": None} for row in record.seeds]


@pytest.mark.parametrize("measured", [1, 3])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    finished, source, tmp_path, capsys, monkeypatch, measured
):
    calls = []

    def interrupted(data, name, *args, **options):
        calls.append(name)
        if len(calls) > measured:
            raise KeyboardInterrupt
        return evaluate(data, name, *args, **options)

    evaluate = anomaly.evaluate
    monkeypatch.setattr(anomaly, "evaluate", interrupted)
    words = ["--data", f"npz:{source}", "--seeds", "0", "1", "--out", str(tmp_path), *SMALL]
    assert main(["anomaly", *words]) == 130
    whole, cut = (Record.load(path / "record.json") for path in (finished, tmp_path))
    assert without_seconds(cut) == without_seconds(whole)[:measured]
    for name in ("auroc.png", "worst.png", "detector-0.safetensors"):
        assert (tmp_path / name).is_file()
    assert "areas under the ROC curve" in capsys.readouterr().out
    monkeypatch.undo()

    assert main(["anomaly", *words, "--resume"]) == 0
    assert capsys.readouterr().out.count("\nseed ") == 4 - measured
    resumed = Record.load(tmp_path / "record.json")
    assert resumed.table == whole.table
    assert without_seconds(resumed) == without_seconds(whole)
    assert resumed.seeds[:measured] == cut.seeds
    assert (resumed.command, resumed.options) == (whole.command, whole.options)
    for name in ("worst.png", "auroc.png"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name
    for name in ("detector-0.safetensors", "detector-1.safetensors"):
        after, expected = (load_detector(folder / name) for folder in (tmp_path, finished))
        images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
        assert torch.equal(after.score(images, "encoder"), expected.score(images, "encoder"))
    assert not (tmp_path / "earlier-1").exists()


def test_a_run_with_more_classes_and_seeds_has_the_table_of_one_that_began_so(
    finished, source, tmp_path
):
    start = ["anomaly", "--data", f"npz:{source}", "--out", str(tmp_path), *SMALL]
    assert main([*start, "--normal", "1", "--seeds", "1"]) == 0
    assert main([*start, "--seeds", "0", "1", "--resume"]) == 0
    whole, resumed = (Record.load(path / "record.json") for path in (finished, tmp_path))
    assert resumed.table == whole.table
    assert without_seconds(resumed) == without_seconds(whole)
    assert (tmp_path / "worst.png").read_bytes() == (finished / "worst.png").read_bytes()


def test_a_run_does_not_go_on_with_other_options(finished, source, capsys):
    before = (finished / "record.json").read_bytes()
    start = ["--data", f"npz:{source}", "--out", finished, *SMALL, "--resume", "--seeds", "0", "1"]
    for words, said in (
        (["--width", "5"], "other options (width)"),
        (["--methods", "pixels"], "other options (methods)"),
        (["--validation", "20"], "other options (test_images, training_images, validation)"),
        (["--normal", "1"], "leaves out, such as seed 0, normal 0"),
        (["--seeds", "1"], "leaves out, such as seed 0, normal 0"),
    ):
        assert said in refused([*start, *words], capsys)
    assert "--validation and --resume need --data" in refused([*start, "--all-normal"], capsys)
    assert (finished / "record.json").read_bytes() == before


def test_validation_leaves_the_test_set_alone(source, tmp_path, capsys):
    words = ["--data", f"npz:{source}", "--methods", "pixels", "--normal", "0", *SMALL]
    words += ["--validation", "20", "--out", str(tmp_path)]
    assert main(["anomaly", *words]) == 0
    assert "92 images to train on, 20 to test on" in capsys.readouterr().out
    record = Record.load(tmp_path / "record.json")
    assert "--validation 20" in record.command
    assert record.seeds[0]["scored"] == {"pixels": 20}


def test_bad_data_is_refused_in_one_line(source, tmp_path, capsys):
    start = ["--out", tmp_path / "run", *SMALL, "--data"]
    assert "has no class '7'; it has 0, 1" in refused(
        [*start, f"npz:{source}", "--normal", "7"], capsys
    )
    bare = tmp_path / "bare.npz"
    numpy.savez(bare, x=numpy.zeros((50, 16, 16), dtype=numpy.uint8))
    assert "has no labels" in refused([*start, f"npz:{bare}"], capsys)
    numpy.savez(bare, x=numpy.zeros((50, 16, 16), dtype=numpy.uint8), y=numpy.arange(50) % 2)
    assert "too few" in refused([*start, f"npz:{bare}"], capsys)
    bare.write_bytes(b"nothing")
    assert "cannot be read" in refused([*start, f"npz:{bare}"], capsys)
    assert "argument --image-size: invalid choice: 20" in refused(
        [*start, f"npz:{source}", "--image-size", "20"], capsys
    )
    (tmp_path / "file").write_text("")
    assert "cannot write to" in refused(
        ["--data", f"npz:{source}", "--out", tmp_path / "file", *SMALL], capsys
    )


def test_bad_models_and_images_are_refused(finished, photos, tmp_path, capsys):
    model = finished / "detector-0.safetensors"
    out = ["--out", tmp_path / "scores.csv"]
    both = ["--score", photos, *out]
    assert "belong together" in refused(["--model", model, *out], capsys)
    assert "cannot be read" in refused(["--model", tmp_path / "absent", *both], capsys)
    assert "takes one of --methods" in refused(
        ["--model", model, *both, "--methods", "latent", "pixels"], capsys
    )
    short = tmp_path / "short.safetensors"
    short.write_bytes(model.read_bytes()[:-100])
    assert "short.safetensors cannot be read" in refused(["--model", short, *both], capsys)
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:60])
    assert "broken.png cannot be read" in refused(["--model", model, *both], capsys)
    assert "is not a folder" in refused(["--model", model, "--score", short, *out], capsys)
    assert not (tmp_path / "scores.csv").exists()


def test_a_method_without_its_network_is_refused(source, photos, tmp_path, capsys):
    words = ["--data", f"npz:{source}", "--normal", "0", "--methods", "pixels", *SMALL]
    assert main(["anomaly", *words, "--out", str(tmp_path / "run")]) == 0
    model = tmp_path / "run" / "detector-0.safetensors"
    words = ["--model", model, "--score", photos, "--methods", "encoder"]
    assert "without an encoder" in refused([*words, "--out", tmp_path / "s.csv"], capsys)
