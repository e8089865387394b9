"""`ganfast classify`: its files and table, that a seed repeats them, and what it refuses."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy
import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from ganfast.applications.classify import METHODS  # noqa: E402
from ganfast.applications.classify.sgan import Supervised  # noqa: E402
from ganfast.applications.records import Record  # noqa: E402
from ganfast.cli import classify as command  # noqa: E402
from ganfast.cli import main  # noqa: E402

SMALL = ["--image-size", "16", "--width", "4", "--batch-size", "8", "--steps", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 60 images of three classes, each with its own bright rows."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = numpy.random.default_rng(0).integers(0, 90, (60, 16, 16), dtype=numpy.uint8)
    labels = numpy.arange(60) % 3
    for image, label in zip(pixels, labels, strict=True):
        image[5 * label : 5 * label + 5] += 150
    numpy.savez(path, x=pixels, y=labels)
    return path


def test_writes_a_record_a_table_and_pictures(images, tmp_path, capsys):
    words = ["--data", f"npz:{images}", "--labels", "3", "9", "3", "--seeds", "0", "4"]
    out = tmp_path / "new" / "run"
    words += ["--method", "supervised", "sgan", *SMALL, "--root", "/home/me/private"]
    assert main(["classify", *words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "48 images to train on, 12 to test on, 3 classes (0, 1, 2), on" in printed

    record = Record.load(out / "record.json")
    assert record.application == "classify"
    assert (record.options["steps"], record.options["width"]) == (3, 4)
    assert "--root PATH" in record.command
    assert "private" not in record.command
    assert record.command.startswith(
        f"ganfast classify --data npz:{images} --root PATH --labels 3 9"
    )
    assert [(row["labels"], row["method"]) for row in record.table] == [
        (3, "supervised"), (3, "sgan"), (9, "supervised"), (9, "sgan"),
    ]  # fmt: skip
    assert len(record.seeds) == 8
    for row in record.table:
        own = [
            s for s in record.seeds if (s["labels"], s["method"]) == (row["labels"], row["method"])
        ]
        assert [seed["seed"] for seed in own] == [0, 4]
        accuracies = [seed["accuracy"] for seed in own]
        assert row["accuracy"] == pytest.approx(sum(accuracies) / 2)
        assert row["deviation"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
        figures = f"{row['accuracy']:.4f} ± {row['deviation']:.4f}"
        assert f"{row['labels']}       {row['method']:<10}  {figures}  2" in printed
        for seed in own:
            counts = numpy.array(seed["confusion"])
            assert counts.sum() == 12
            assert counts.trace() / 12 == pytest.approx(seed["accuracy"])
    for name in ("confusion.png", "accuracy.png"):
        with Image.open(out / name) as picture:
            assert len(picture.convert("L").getcolors()) > 20
        assert (out / name).stat().st_size < 60_000


def test_one_number_of_labels_makes_no_plot_and_a_seed_repeats(images, tmp_path):
    found = []
    for name in ("a", "b"):
        words = ["--data", f"npz:{images}", "--labels", "6", "--seeds", "1", *SMALL]
        assert main(["classify", *words, "--out", str(tmp_path / name)]) == 0
        record = json.loads((tmp_path / name / "record.json").read_text())
        found.append([{**row, "seconds": None} for row in record["seeds"]])
        torch.rand(3)
    assert found[0] == found[1]
    assert {row["method"] for row in found[0]} == {"sgan", "supervised"}
    assert not (tmp_path / "a" / "accuracy.png").exists()


def test_every_method_runs(images, tmp_path, capsys):
    words = ["--data", f"npz:{images}", "--labels", "6", "--seeds", "1", *SMALL]
    words += ["--method", *METHODS]
    assert main(["classify", *words, "--out", str(tmp_path)]) == 0
    assert "labels 6, method features, seed 1: accuracy" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(
    images, tmp_path, capsys, monkeypatch
):
    words = ["classify", "--data", f"npz:{images}", "--labels", "6", "--method", "supervised"]
    words += ["--out", str(tmp_path / "out"), *SMALL, "--seeds", "1", "2"]
    update = Supervised.update
    calls = []

    def stop_in_the_second(self, share):
        calls.append(share)
        if len(calls) == 5:
            raise KeyboardInterrupt
        update(self, share)

    monkeypatch.setattr(Supervised, "update", stop_in_the_second)
    assert main(words) == 130
    (first,) = Record.load(tmp_path / "out" / "record.json").seeds
    assert first["seed"] == 1
    assert (tmp_path / "out" / "confusion.png").is_file()
    said = capsys.readouterr().out
    assert re.search(r"seed 1: accuracy \d\.\d{4}; about \d\d:\d\d left\n", said)
    assert "labels  method      accuracy  seeds" in said  # the table so far
    monkeypatch.undo()

    assert main([*words, "--resume"]) == 0
    assert "seed 1:" not in capsys.readouterr().out
    record = Record.load(tmp_path / "out" / "record.json")
    assert [row["seed"] for row in record.seeds] == [1, 2]
    assert record.seeds[0] == first
    assert record.table[0]["seeds"] == 2
    assert not (tmp_path / "out" / "earlier-1").exists()

    assert main([*words, "--resume", "--width", "5"]) == 2
    assert "measured with other options (width)" in capsys.readouterr().err
    assert main([*words[:-1], "--resume"]) == 2
    assert "leaves out, such as labels 6, method supervised, seed 2" in capsys.readouterr().err
    assert len(Record.load(tmp_path / "out" / "record.json").seeds) == 2


def test_validation_leaves_the_test_set_alone(images, tmp_path, capsys):
    words = ["classify", "--data", f"npz:{images}", "--labels", "6", "--seeds", "1", *SMALL]
    words += ["--method", "pixels", "--validation", "9", "--degrees", "0"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "39 images to train on, 9 to test on" in capsys.readouterr().out
    record = Record.load(tmp_path / "out" / "record.json")
    assert "--validation 9" in record.command
    assert "--degrees 0" in record.command
    assert "--stretch" not in record.command  # the default
    assert numpy.array(record.seeds[0]["confusion"]).sum() == 9


@pytest.mark.parametrize(
    ("words", "steps"),
    [([], 5000), (["--steps", "7"], 7), (["--epochs", "2"], 2000)],
)
def test_updates_of_a_large_set(words, steps):
    assert command.updates(_parsed(*words), per_epoch=1000) == steps


def test_updates_of_a_small_set_are_fewer():
    assert command.updates(_parsed(), per_epoch=28) == 28 * 40


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["classify", *words])


def bad_words(name: str, images: Path, tmp_path: Path) -> tuple[list[str], str]:
    """Return options that cannot be met, and what must be said."""
    data = ["--data", f"npz:{images}"]
    blank = numpy.zeros((20, 16, 16), dtype=numpy.uint8)
    if name == "without labels":
        numpy.savez(tmp_path / "a.npz", x=blank)
        return ["--data", f"npz:{tmp_path / 'a.npz'}"], "has no labels"
    if name == "one class":
        numpy.savez(tmp_path / "a.npz", x=blank, y=numpy.zeros(20, dtype=int))
        return ["--data", f"npz:{tmp_path / 'a.npz'}"], "has one class only"
    return {
        "fewer labels than classes": (
            [*data, "--labels", "2"], "2 labels for 3 classes: each needs one"
        ),
        "more labels than images": ([*data, "--labels", "300"], "300 labels need 100 images"),
        "batch larger than data": (
            [*data, "--labels", "6", "--batch-size", "49"], "batches of 49 are larger"
        ),
        "unknown data": (["--data", "imagenet"], "unknown data 'imagenet'"),
        "unknown method": ([*data, "--method", "magic"], "invalid choice: 'magic'"),
        "missing device": ([*data, "--device", "cuda:99"], "--device cuda:99 is not available"),
        "out is a file": (
            [*data, *SMALL, "--labels", "6", "--out", str(images)], "cannot write to --out"
        ),
        "image size": ([*data, "--image-size", "20"], "invalid choice: 20"),
        "steps and epochs": ([*data, "--steps", "1", "--epochs", "1"], "not allowed with"),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "without labels", "one class", "fewer labels than classes", "more labels than images",
        "batch larger than data", "unknown data", "unknown method", "missing device",
        "out is a file", "image size", "steps and epochs",
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(name, images, tmp_path, capsys):
    words, message = bad_words(name, images, tmp_path)
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert main(["classify", *words, *out]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_interruption_and_divergence(images, tmp_path, capsys, monkeypatch):
    words = ["classify", "--data", f"npz:{images}", "--labels", "6", "--out", str(tmp_path), *SMALL]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ganfast.applications.classify.sgan.SemiSupervised.update", stop)
    assert main(words) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()

    monkeypatch.setattr("ganfast.applications.classify.sgan.LEARNING_RATE", float("nan"))
    assert main(words) == 2
    assert "training diverged" in capsys.readouterr().err
