"""The options of a training: one declaration for the trainer, the step and the command line."""

from __future__ import annotations

import argparse
import inspect
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from ganfast.cli import main
from ganfast.cli.presets import DEFAULTS, PRESETS
from ganfast.cli.train_settings import Settings, add_settings, resolved
from ganfast.training import GANStep, TrainingOptions, load_checkpoint, load_newest
from ganfast.training.checkpoints import save_checkpoint
from ganfast.training.options import options_of
from ganfast.training.trainer import STEP_OPTIONS

OPTIONS = {name: (default, known) for name, default, known in options_of(TrainingOptions)}
TINY = ["--image-size", "16", "--width", "4", "--latent", "6", "--batch-size", "8"]


def parsed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return vars(parser.parse_args(words))


def test_every_field_is_an_option_and_none_is_given_unless_it_is_said():
    assert set(OPTIONS) == set(inspect.signature(TrainingOptions).parameters)
    assert parsed() == {}


def test_the_step_has_the_defaults_of_the_options():
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(GANStep).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("processes", "generator_term")
    }
    assert keywords == {name: OPTIONS[name][0] for name in keywords}
    assert set(STEP_OPTIONS) == set(keywords)  # what the trainer passes on


@pytest.mark.parametrize("values", [DEFAULTS, *PRESETS.values()])
def test_presets_override_fields_and_a_misspelt_one_raises(values):
    Settings(**values)
    with pytest.raises(TypeError, match="learnig_rate"):
        Settings(**values, learnig_rate=1.0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", 0, r"steps must be a positive integer below 2\^31, got 0"),
        ("batch_size", -1, "batch_size must be a positive integer"),
        ("learning_rate", math.inf, "learning_rate must be a positive number, got inf"),
        ("betas", (0.5, 1.0), "betas must be at least 0 and below 1"),
        ("loss", "magic", "loss must be one of bce, hinge, lsgan, wasserstein, got 'magic'"),
        ("penalty", math.nan, "penalty must not be negative"),
        ("quality_every", -5, "quality_every must be 0 or a positive integer"),
        ("on_nan", "pray", "on_nan must be one of stop, rollback"),
        ("capture", "maybe", "capture must be one of auto, always, never"),
    ],
)
def test_options_out_of_range_are_refused(name, value, said):
    with pytest.raises(ValueError, match=said):
        TrainingOptions(**{name: value})


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--paired"], "paired", True),
        (["--no-paired"], "paired", False),
        (["--capture"], "capture", "always"),
        (["--no-capture"], "capture", "never"),
        (["--channels-last"], "channels_last", True),
        (["--no-channels-last"], "channels_last", False),
    ],
)
def test_switches_set_their_values(words, name, value):
    assert parsed(*words) == {name: value}


def test_what_the_step_may_do_reaches_it(tmp_path, monkeypatch, capsys):
    said = []
    original = GANStep.__call__
    monkeypatch.setattr(
        GANStep, "__call__", lambda step, x: said.append(step.explain()) or original(step, x)
    )
    words = ["train", *TINY, "--steps", "2", "--quality-every", "0", "--device", "cpu"]
    assert main([*words, "--no-channels-last", "--out", str(tmp_path / "a")]) == 0
    assert "layout: contiguous, as asked for\npaired: no: it takes memory" in said[-1]
    assert "captured: no: the networks are on the cpu" in said[-1]
    words += ["--paired", "--channels-last", "--no-capture"]
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert (
        "channels-last, as asked for\npaired: yes\ncompiled: no\ncaptured: no: not asked for"
        in said[-1]
    )
    capsys.readouterr()
    assert main([*words, "--capture", "--out", str(tmp_path / "c")]) == 2
    assert "cannot be captured: the networks are on the cpu" in capsys.readouterr().err


def test_a_checkpoint_of_earlier_versions_is_resumed_with_its_options(tmp_path: Path) -> None:
    """They held the command's settings in the configuration, and called the learning rate lr."""
    words = ["--out", str(tmp_path), "--lr", "0.01", "--seed", "3", "--no-paired"]
    assert main(["train", *TINY, "--steps", "2", *words, "--quality-every", "0"]) == 0
    path, state = load_newest(tmp_path)
    written = state.pop("options")
    earlier = {**written, "lr": written["learning_rate"]}
    for name in ("learning_rate", "keep_memory", "paired", "capture", "channels_last"):
        del earlier[name]
    state["configuration"]["settings"] = earlier
    save_checkpoint(tmp_path, state.pop("step"), state)
    assert "options" not in load_checkpoint(path)
    assert main(["train", "--resume", "--out", str(tmp_path), "--steps", "4"]) == 0
    again = load_newest(tmp_path)[1]
    assert again["options"] == {**written, "steps": 4, "paired": None}
    assert again["optimizer_g"]["param_groups"][0]["lr"] == 0.01


def test_settings_that_this_version_does_not_know_are_refused(tmp_path, capsys):
    assert main(["train", *TINY, "--steps", "1", "--out", str(tmp_path)]) == 0
    _, state = load_newest(tmp_path)
    state["options"]["colour"] = "red"
    save_checkpoint(tmp_path, state.pop("step"), state)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(tmp_path), "--steps", "2"]) == 2
    assert "settings that this version does not know: colour" in capsys.readouterr().err


def test_what_is_given_overrides_a_preset_and_the_command():
    values = resolved({}, {"preset": "dcgan", "batch_size": 7})
    assert (values["batch_size"], values["steps"]) == (7, DEFAULTS["steps"])
    assert values["learning_rate"] == PRESETS["dcgan"]["learning_rate"]
