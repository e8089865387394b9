"""``ganfast train``: what it writes, what it refuses and how, Ctrl-C."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from ganfast.cli import main  # noqa: E402
from ganfast.training import GANStep, load_newest, progress  # noqa: E402

TINY = ["--image-size", "16", "--width", "4", "--latent", "6", "--batch-size", "8"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels)
    return f"npz:{tmp_path / 'images.npz'}"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that must fail, and return its one line on standard error."""

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("ganfast: error: ")
        return lines[0]

    return run


def train(data: str, out: Path, *words: str) -> int:
    return main(["train", "--data", data, "--out", str(out), *TINY, *words])


@pytest.mark.parametrize("model", ["dcgan", "keras-dcgan", "mlp"])
def test_trains_and_says_where_the_samples_are(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    out = tmp_path / "run"
    assert train(data, out, "--steps", "3", "--log-every", "1", "--model", model) == 0
    printed = capsys.readouterr()
    assert f"training {model} on {data}: 40 images of 1x16x16, 3 steps of 8" in printed.out
    assert str(out / "samples.png") in printed.out
    assert printed.err == ""
    assert len((out / "metrics.csv").read_text().splitlines()) == 4
    state = load_newest(out)[1]
    options = {"image_size": 16, "channels": 1, "width": 4, "latent": 6}
    assert state["configuration"]["model"] == {"name": model, "options": options}


def test_says_how_far_it_is_where_no_terminal_shows_a_bar(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=4.0)  # seconds between two looks: every third step makes a line
    monkeypatch.setattr(progress, "perf_counter", lambda: next(clock))
    words = ["--steps", "9", "--log-every", "2"]
    assert train(data, tmp_path / "run", *words) == 0
    lines = capsys.readouterr().err.splitlines()
    losses = r"d_loss \d\.\d{3}, g_loss \d\.\d{3}"
    assert len(lines) == 3
    for line, step, left in zip(lines, (3, 6, 9), ("00:24", "00:12", "00:00"), strict=True):
        assert re.fullmatch(rf"step {step} of 9: 2 images/s, {losses}, {left} left", line), line


def test_epochs_count_whole_batches(data: str, tmp_path: Path) -> None:
    assert train(data, tmp_path / "run", "--epochs", "2", "--batch-size", "16") == 0
    assert load_newest(tmp_path / "run")[1]["step"] == 4  # 40 images are two batches of 16


def test_options_reach_the_training(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--steps", "4", "--lr", "0.01", "--betas", "0", "0.9", "--seed", "5"]
    words += ["--sample-every", "2", "--checkpoint-every", "3", "--channels", "3"]
    assert train(data, out, *words) == 0
    state = load_newest(out)[1]
    assert state["optimizer_g"]["param_groups"][0]["lr"] == 0.01
    assert state["optimizer_d"]["param_groups"][0]["betas"] == (0.0, 0.9)
    assert state["generator"]["main.6.weight"].shape[1] == 3
    assert {p.name for p in out.glob("samples-*")} == {"samples-000002.png", "samples-000004.png"}
    assert {p.name for p in out.glob("checkpoint-*")} == {
        "checkpoint-00000003.safetensors",
        "checkpoint-00000004.safetensors",
    }


@pytest.mark.parametrize("loss", ["hinge", "lsgan", "wasserstein"])
def test_losses_and_precisions_reach_the_step(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    seen: list[Any] = []
    original = GANStep.__call__
    monkeypatch.setattr(
        GANStep, "__call__", lambda step, real: seen.append(step) or original(step, real)
    )
    words = ["--loss", loss, "--precision", "bf16", "--ema", "0.5", "--penalty", "10", "--r1", "2"]
    assert train(data, tmp_path / "run", "--steps", "2", "--log-every", "1", *words) == 0
    assert seen[0].loss.kind == loss
    assert (seen[0].precision, seen[0].penalty, seen[0].r1) == ("bf16", 10.0, 2.0)
    assert seen[0].average.decay == 0.5
    average = load_newest(tmp_path / "run")[1]["step_state"]["average"]["generator"]
    assert all(torch.isfinite(value).all() for value in average.values())


def test_the_seed_decides_everything(data: str, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train(data, tmp_path / name, "--steps", "2", "--seed", seed) == 0
        torch.rand(3)
    a, b, c = (load_newest(tmp_path / name)[1]["generator"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["main.0.weight"], c["main.0.weight"])


@pytest.mark.parametrize("more", [[], ["--precision", "fp16", "--ema", "0.9"]], ids=["", "fp16"])
def test_resume_needs_no_other_option_and_gives_the_same_bits(
    data: str, tmp_path: Path, more: list[str]
) -> None:
    every = ["--log-every", "2", "--seed", "3", *more]
    assert train(data, tmp_path / "whole", "--steps", "7", *every) == 0
    assert train(data, tmp_path / "cut", "--steps", "4", *every) == 0
    assert main(["train", "--resume", "--out", str(tmp_path / "cut"), "--steps", "7"]) == 0
    whole, cut = (load_newest(tmp_path / name)[1] for name in ("whole", "cut"))
    assert cut["configuration"] == whole["configuration"]
    for part in ("generator", "discriminator"):
        assert all(torch.equal(whole[part][key], cut[part][key]) for key in whole[part])
    averages = [
        (state["step_state"]["average"] or {}).get("generator", {}) for state in (whole, cut)
    ]
    assert bool(averages[0]) == bool(more)
    assert all(torch.equal(value, averages[1][key]) for key, value in averages[0].items())
    assert whole["step_state"]["scaler"] == cut["step_state"]["scaler"]
    steps = [
        [line.split(",")[:-3] for line in (tmp_path / name / "metrics.csv").read_text().split()]
        for name in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


def test_resume_of_a_finished_run_changes_nothing(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out, "--steps", "2")
    before = {p.name: p.read_bytes() for p in out.glob("checkpoint-*")}
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert {p.name: p.read_bytes() for p in out.glob("checkpoint-*")} == before


def test_resume_refuses_contradictions(data: str, tmp_path: Path, fails: Any) -> None:
    out = tmp_path / "run"
    train(data, out, "--steps", "2")
    message = fails("train", "--resume", "--out", out, "--width", "8")
    assert "--width 8 contradicts the run being resumed, which has 4" in message
    assert "--batch-size 4 contradicts" in fails(
        "train", "--resume", "--out", out, "--batch-size", "4"
    )
    assert "step 2, beyond the 1 steps" in fails("train", "--resume", "--out", out, "--steps", "1")
    assert main(["train", "--resume", "--out", str(out), "--width", "4"]) == 0


def test_resume_notices_other_images(data: str, tmp_path: Path, fails: Any) -> None:
    out, file = tmp_path / "run", tmp_path / "images.npz"
    pixels = np.load(file)["x"]
    train(data, out, "--steps", "3")
    resume = ["train", "--resume", "--out", str(out), "--steps", "5"]
    others = {
        "inverted": 255 - pixels,
        "one value": np.where(np.arange(pixels.size).reshape(pixels.shape), pixels, ~pixels),
        "RGB": np.stack([pixels, pixels, ~pixels], -1),
        "fewer": pixels[:30],
        "reordered": pixels[::-1],
    }
    for name, images in others.items():
        np.savez(file, x=images)
        message = fails(*resume)
        assert "the images are others than those it was trained on" in message, name
        assert "--allow-other-data" in message
    np.savez(file, x=pixels)
    assert main(resume) == 0
    np.savez(file, x=pixels[:20])
    assert main([*resume[:-1], "7", "--allow-other-data"]) == 0
    assert load_newest(out)[1]["step"] == 7
    assert main([*resume[:-1], "9"]) == 0  # the new images are now the run's
    assert "--allow-other-data belongs to --resume" in fails(
        "train", "--out", out, "--allow-other-data"
    )


def test_resume_skips_a_truncated_checkpoint(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Any
) -> None:
    out = tmp_path / "run"
    train(data, out, "--steps", "4", "--checkpoint-every", "2")
    newest = out / "checkpoint-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "ganfast: warning: skipped a checkpoint" in printed.err
    assert newest.name in printed.err
    assert "checkpoint-00000002.safetensors" in printed.out
    for file in out.glob("checkpoint-*"):
        file.write_bytes(file.read_bytes()[:1000])
    assert newest.name in fails("train", "--resume", "--out", out)
    for file in out.glob("checkpoint-*"):
        file.unlink()
    assert "holds no checkpoint" in fails("train", "--resume", "--out", out)


def test_bad_data(tmp_path: Path, fails: Any) -> None:
    out = ["--out", tmp_path / "run", *TINY]
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "one.png").write_bytes(b"no image")
    for spec, message in (
        ("imagenet", "unknown data 'imagenet'; known: digits"),
        ("mnist", "--download"),
        (f"folder:{tmp_path / 'absent'}", "absent is not a folder"),
        (f"folder:{tmp_path / 'empty'}", "empty holds no images"),
        (f"folder:{tmp_path / 'broken'}", "one.png cannot be read as an image"),
        (f"npz:{tmp_path / 'absent'}", "no such file"),
    ):
        assert message in fails("train", "--data", spec, "--root", tmp_path, *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "20"], "image_size must be one of 16, 28, 32, 64, 128, 256, got 20"),
        (
            ["--image-size", "0"],
            "argument --image-size: must be a positive integer below 2^31, got '0'",
        ),
        (["--batch-size", "41"], "batch size 41 is larger than"),
        (["--batch-size", "-8"], "must be a positive integer below 2^31, got '-8'"),
        (["--steps", "0"], "must be a positive integer"),
        (["--epochs", "1.5"], "must be a positive integer below 2^31, got '1.5'"),
        (["--steps", "5", "--epochs", "5"], "not allowed with argument"),
        (["--lr", "0"], "--lr: must be a positive number, got '0'"),
        (["--lr", "nan"], "must be a positive number, got 'nan'"),
        (["--lr", "inf"], "must be a positive number, got 'inf'"),
        (["--betas", "0.5", "1"], "must be at least 0 and below 1, got '1'"),
        (["--betas", "0.5"], "expected 2 arguments"),
        (["--precision", "fp16", "--r1", "1"], "use precision='bf16'"),
        (["--ema", "1"], "must be at least 0 and below 1"),
        (["--log-every", "0"], "must be a positive integer"),
        (["--seed", "-1"], "must be an integer from 0"),
        (["--model", "biggan"], "invalid choice: 'biggan'"),
        (["--channels", "2"], "invalid choice: 2"),
        (["--device", "abacus"], "--device abacus is not available"),
        (["--device", "meta"], "--device meta is not available"),
        (["--device", "cuda:77"], "--device cuda:77 is not available"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_options(data: str, tmp_path: Path, fails: Any, words: list[str], message: str) -> None:
    assert message in fails("train", "--data", data, "--out", tmp_path / "run", *TINY, *words)


def test_no_or_unknown_command(fails: Any) -> None:
    assert "COMMAND" in fails()
    assert "invalid choice: 'dance'" in fails("dance")


def test_an_output_folder_that_cannot_be_written(data: str, tmp_path: Path, fails: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        message = fails("train", "--data", data, "--out", out, *TINY, "--steps", "1")
        assert f"cannot write to --out {out}" in message


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write")
def test_a_read_only_output_folder(data: str, tmp_path: Path, fails: Any) -> None:
    out = tmp_path / "locked"
    out.mkdir()
    out.chmod(0o500)
    message = fails("train", "--data", data, "--out", out, *TINY, "--steps", "1")
    assert "cannot write to --out" in message


def test_a_disk_that_fills_up(
    data: str, tmp_path: Path, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = fails("train", "--data", data, "--out", tmp_path / "run", *TINY, "--steps", "1")
    assert "No space left on device" in message


@pytest.mark.parametrize("package", ["matplotlib", "torchvision", "tqdm"])
def test_a_missing_package_is_named_before_training(
    data: str, tmp_path: Path, fails: Any, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = fails("train", "--data", data, "--out", tmp_path / "run", *TINY)
    assert f"{package} is not installed; it comes with: pip install ganfast[train]" in message
    assert not (tmp_path / "run").exists()


def test_help_lists_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0.0005" in text
    assert "fashion-mnist" in text


def diverge_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Have the generator's weights become NaN after the given calls of a step."""
    original, calls = GANStep.__call__, iter(range(1, 1000))

    def step(self: GANStep, real: torch.Tensor) -> Any:
        result = original(self, real)
        if next(calls) in steps:
            with torch.no_grad():
                next(self.generator.parameters()).fill_(torch.nan)
        return result

    monkeypatch.setattr(GANStep, "__call__", step)


def test_nan_stops_with_the_last_good_checkpoint(
    data: str, tmp_path: Path, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_at(monkeypatch, 4)
    words = ["--data", data, *TINY, "--out", tmp_path, "--log-every", "2", "--steps", "9"]
    error = fails("train", *words, "--checkpoint-every", "3")
    assert "at step 6 a loss or a weight is not finite" in error
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-00000003.safetensors'}" in error
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000003.safetensors"]
    diverge_at(monkeypatch, 1)
    error = fails("train", *words[:-2], "--out", tmp_path / "new", "--steps", "9")
    assert "there is no checkpoint to go back to" in error


def test_nan_rolls_back_three_times_at_most(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diverge_at(monkeypatch, *range(4, 1000))
    words = ["--steps", "9", "--checkpoint-every", "3", "--on-nan", "rollback"]
    assert train(data, tmp_path, *words) == 2
    *warned, error = capsys.readouterr().err.splitlines()
    assert ["went back to" in line for line in warned] == [True] * 3
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-00000003.safetensors'}" in error


def test_nan_rolls_back_with_half_the_learning_rate(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diverge_at(monkeypatch, 4, 8)
    words = ["--steps", "9", "--log-every", "1", "--checkpoint-every", "3", "--on-nan", "rollback"]
    assert train(data, tmp_path, *words, "--lr", "0.004") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "warning: at step 5 a loss or a weight is not finite" in lines[0]
    assert "checkpoint-00000003.safetensors with learning rate 0.002" in lines[0]
    assert "at step 6 a loss" in lines[1]  # its loss came before its weights were lost
    assert "checkpoint-00000003.safetensors with learning rate 0.001" in lines[1]
    state = load_newest(tmp_path)[1]
    assert state["step"] == 9
    assert state["optimizer_g"]["param_groups"][0]["lr"] == 0.001
    assert all(torch.isfinite(value).all() for value in state["generator"].values())
    steps = [row.split(",")[0] for row in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 10)]


@pytest.mark.parametrize(("number", "presses"), [(signal.SIGINT, 3), (signal.SIGTERM, 1)])
def test_a_signal_saves_and_the_run_can_go_on(
    data: str, tmp_path: Path, number: int, presses: int
) -> None:
    """A signal that comes twice within a moment is one."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ganfast", "train", "--out", str(out)]
    words = ["--data", data, *TINY, "--steps", "1000000", "--log-every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        metrics = out / "metrics.csv"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(presses):
            process.send_signal(number)
            time.sleep(0.05)
        _, stderr = process.communicate(timeout=60)
    text = stderr.decode()
    assert process.returncode == 130
    assert "Traceback" not in text
    assert "ganfast: finishing the step, writing a checkpoint; press again to end at once" in text
    state = load_newest(out)[1]
    assert f"interrupted; saved a checkpoint at step {state['step']}" in text
    further = str(state["step"] + 2)
    assert main(["train", "--resume", "--out", str(out), "--steps", further]) == 0
    steps = [int(line.split(",")[0]) for line in metrics.read_text().splitlines()[1:]]
    assert steps == list(range(1, state["step"] + 3))
