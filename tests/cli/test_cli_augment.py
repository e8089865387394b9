"""`ganfast augment`: its table and files, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

for package in ("torchvision", "scipy", "matplotlib"):
    pytest.importorskip(package)

from ganfast.applications.records import Record  # noqa: E402
from ganfast.cli import augment, main  # noqa: E402
from ganfast.training import load_images  # noqa: E402

QUICK = ["--updates", "3", "--gan-updates", "3", "--width", "4", "--per-class", "3"]
QUICK += ["--device", "cpu"]


@pytest.fixture
def source(tmp_path: Path) -> str:
    rng = numpy.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16), dtype=numpy.uint8)
    numpy.savez(tmp_path / "images.npz", x=images, y=numpy.arange(40) % 2)
    return f"npz:{tmp_path / 'images.npz'}"


def test_a_run_leaves_its_table_record_pictures_and_images(source, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--data", source, "--labels", "6", "--seeds", "0", "1", "--out", str(out), *QUICK]
    assert main(["augment", *words]) == 0
    said = capsys.readouterr().out
    assert "32 images to train on, 8 to test on, 2 classes (0, 1), on cpu" in said
    assert "95 % interval" in said
    assert "paired over 2 seeds" in said
    record = Record.load(out / "record.json")
    assert [row["method"] for row in record.table][:2] == ["real", "real + generated"]
    assert [row["seed"] for row in record.seeds] == [0, 1]
    assert record.options["labels"] == 6
    assert "--labels 6" in record.command
    for row in record.table:
        values = [of_seed["accuracies"][row["method"]] for of_seed in record.seeds]
        assert row["accuracy"] == pytest.approx(sum(values) / 2)
        assert f"{row['accuracy']:.4f}" in said
    for name in ("accuracies.png", "samples.png"):
        assert (out / name).stat().st_size > 500
    made = load_images(f"folder:{out / 'images'}", image_size=16)
    assert made.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert made.classes == ("0", "1")


def test_seeds_repeat_a_run(source, tmp_path):
    records = []
    for name, seeds in (("a", ["3", "4"]), ("b", ["3", "4"]), ("c", ["4"])):
        words = ["--data", source, "--labels", "6", "--out", str(tmp_path / name), *QUICK]
        assert main(["augment", *words, "--seeds", *seeds]) == 0
        records.append(Record.load(tmp_path / name / "record.json"))
    assert records[0].seeds == records[1].seeds
    assert records[0].seeds[1] == records[2].seeds[0]  # no seed depends on another
    images = [load_images(f"folder:{tmp_path / n / 'images'}", image_size=16) for n in "ab"]
    assert torch.equal(images[0].images, images[1].images)


def test_an_interrupted_run_keeps_its_seed_and_images_and_goes_on(
    source, tmp_path, capsys, monkeypatch
):
    def interrupted(data, options, seed, **others):
        if seed == 4:
            raise KeyboardInterrupt
        return run_seed(data, options, seed, **others)

    out = tmp_path / "out"
    words = ["augment", "--data", source, "--labels", "6", "--out", str(out), *QUICK]
    words += ["--seeds", "3", "3", "4"]
    run_seed = augment.run_seed
    monkeypatch.setattr(augment, "run_seed", interrupted)
    assert main(words) == 130
    assert "whether it helps is open" in capsys.readouterr().out
    monkeypatch.undo()
    files = {path.name for path in out.iterdir()}
    assert files == {"record.json", "accuracies.png", "samples.png", "images"}
    made = load_images(f"folder:{out / 'images'}", image_size=16).images

    assert main([*words, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "seed 3:" not in said
    assert "seed 4:" in said
    assert "real + generated, shifted over real, shifted" in said
    assert {path.name for path in out.iterdir()} == files
    assert torch.equal(load_images(f"folder:{out / 'images'}", image_size=16).images, made)
    resumed = Record.load(out / "record.json")
    assert main([*words[:-3], "3", "4", "--out", str(tmp_path / "whole")]) == 0
    whole = Record.load(tmp_path / "whole" / "record.json")
    assert (resumed.table, resumed.seeds) == (whole.table, whole.seeds)
    assert resumed.command == whole.command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--labels", "1"], "1 label for 2 classes"),
        (["--labels", "100"], "there are"),
        (["--image-size", "20"], "choose from 16, 28, 32"),
        (["--data", "npz:nothing.npz"], "no such file"),
        (["--device", "nonsense"], "--device nonsense is not available"),
    ],
)
def test_bad_options_are_refused(source, tmp_path, capsys, words, said):
    start = ["augment", "--data", source, "--labels", "6", *QUICK, "--out", str(tmp_path / "out")]
    assert main([*start, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("labels", "said"), [(None, "has no labels"), ([4] * 9, "one class only")])
def test_data_without_classes_is_refused(tmp_path, capsys, labels, said):
    arrays = {} if labels is None else {"y": numpy.array(labels)}
    numpy.savez(tmp_path / "x.npz", x=numpy.zeros((9, 16, 16), dtype=numpy.uint8), **arrays)
    words = ["--data", f"npz:{tmp_path / 'x.npz'}", "--out", str(tmp_path / "out")]
    assert main(["augment", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_earlier_images_are_not_mixed_with_new_ones(source, tmp_path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "earlier.png").touch()
    words = ["--data", source, "--labels", "6", "--seeds", "0", *QUICK]
    assert main(["augment", *words, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "earlier-1" / "images" / "earlier.png").exists()
    assert not (tmp_path / "out" / "images" / "earlier.png").exists()
