"""`ganfast bench`: every suite runs, wrong values stop it, and its files hold what was measured."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ganfast import nn as fast
from ganfast.bench import SUITES, Options, compare
from ganfast.bench.step import plain
from ganfast.cli import main
from ganfast.models import dcgan

SMALL = {"ops": (4, 3, 5, 5), "losses": (8,), "overhead": (2, 8, 4, 4), "step": (4, 1, 16, 16)}


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_measures_ours_and_torchs(suite):
    pytest.importorskip("tqdm")
    cases = list(SUITES[suite](Options(shapes=(SMALL[suite],))))
    assert cases
    for case in cases:
        assert {"ganfast", "eager"} <= case.providers.keys()
        times = compare(case.providers, rounds=2, least_seconds=1e-5)
        assert all(time.lower_s <= time.median_s <= time.upper_s for time in times.values())
        assert bool(case.images) == (suite == "step")
        assert bool(case.bytes_moved) == (suite in ("ops", "losses"))


def test_every_pass_dtype_and_layout(capsys):
    options = Options(
        passes=("forward", "double backward"), dtypes=("float32", "bfloat16"),
        layouts=("NC*", "channels-last"), shapes=((4, 3, 5, 5), (16, 4)),
    )  # fmt: skip
    cases = list(SUITES["ops"](options))
    assert len({(case.name, case.passes) for case in cases}) == len(cases) == 16
    moved = {case.bytes_moved for case in cases if case.name == "(16, 4) bfloat16"}
    assert moved == {2 * 64 * 2, 5 * 64 * 2}


def test_the_command_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    found, drawn = tmp_path / "found.jsonl", tmp_path / "drawn.png"
    command = ["bench", "ops", "--device", "cpu", "--shapes", "4x3x5x5", "16x4", "--rounds", "2"]
    for _ in range(2):  # appends
        assert main([*command, "--json", str(found), "--plot", str(drawn)]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2
    assert {row["passes"] for row in rows} == {"forward", "forward+backward"}
    for row in rows:
        assert row["case"] in printed
        assert row["machine"]["torch"] == torch.__version__
        assert row["bytes"] > 0 < row["ms"]["ganfast"][0]
    assert "GB/s" in printed
    assert "geometric mean" in printed
    with image.open(drawn) as picture:
        assert min(picture.size) > 100


def test_wrong_values_stop_the_command(monkeypatch, capsys):
    monkeypatch.setattr(fast.BatchNorm2d, "forward", lambda self, x: 1.01 * x)
    assert main(["bench", "ops", "--device", "cpu", "--shapes", "4x3x5x5", "--rounds", "2"]) == 2
    assert "differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ops", "--shapes", "64"], "NxCxHxW"),
        (["ops", "--shapes", "4xa"], "64x128x8x8"),
        (["ops", "--device", "abacus"], "abacus"),
        (["step", "--shapes", "4x1x16x32"], "square"),
        (["ops", "--json", "no/such/folder.jsonl"], "no folder"),
        (["nothing"], "nothing"),
    ],
)
def test_bad_input_is_an_error_of_one_line(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_plain_is_torchs_model_with_the_same_numbers():
    gan = dcgan(image_size=16, channels=1, width=4, latent=6)
    copied = plain(gan.generator)
    kinds = {type(module) for module in copied.modules()}
    assert nn.BatchNorm2d in kinds
    assert fast.BatchNorm2d not in kinds
    assert fast.BatchNorm2d in {type(module) for module in gan.generator.modules()}
    noise = torch.randn(5, *gan.latent)
    torch.testing.assert_close(copied(noise), gan.generator(noise))
