"""``ganfast train --preset``: what it sets, what overrides it, and runs that are resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

for package in ("torchvision", "matplotlib", "safetensors", "tqdm"):
    pytest.importorskip(package)

from ganfast import models  # noqa: E402
from ganfast.cli import main  # noqa: E402
from ganfast.cli.presets import PRESETS  # noqa: E402
from ganfast.nn import GANLoss  # noqa: E402
from ganfast.training import GANStep, load_newest  # noqa: E402

TINY = ["--width", "4", "--latent", "6", "--batch-size", "8", "--steps", "2"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels)
    return f"npz:{tmp_path / 'images.npz'}"


def newest(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's newest checkpoint and the settings in it."""
    state = load_newest(out)[1]
    return state, state["options"]


def train(data: str, out: Path, *words: str) -> int:
    return main(["train", "--data", data, "--out", str(out), *words])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_sets_what_no_option_does(data: str, tmp_path: Path, preset: str) -> None:
    assert train(data, tmp_path, "--preset", preset, *TINY) == 0
    state, settings = newest(tmp_path)
    for name, value in PRESETS[preset].items():
        if name not in ("width", "latent", "batch_size"):
            assert settings[name] == value, name
    assert (settings["width"], settings["latent"], settings["batch_size"]) == (4, 6, 8)
    for optimizer in ("optimizer_g", "optimizer_d"):
        (group,) = state[optimizer]["param_groups"]
        assert group["lr"] == PRESETS[preset]["learning_rate"]
        assert tuple(group["betas"]) == PRESETS[preset]["betas"]
    size = PRESETS[preset]["image_size"]
    assert models.build(
        state["configuration"]["model"]["name"], **state["configuration"]["model"]["options"]
    ).image_shape == (3, size, size)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("dcgan", ("dcgan", 64, 64, 100, 128, 2e-4, (0.5, 0.999))),
        ("keras-dcgan", ("keras-dcgan", 32, 64, 100, 128, 2e-4, (0.5, 0.999))),
        ("mlp-mnist", ("mlp", 28, 128, 100, 64, 2e-4, (0.5, 0.999))),
    ],
)
def test_presets_are_those_of_their_sources(preset: str, expected: tuple[Any, ...]) -> None:
    names = ("model", "image_size", "width", "latent", "batch_size", "learning_rate", "betas")
    assert tuple(PRESETS[preset][name] for name in names) == expected


def test_options_override_a_preset(data: str, tmp_path: Path) -> None:
    words = ["--preset", "mlp-mnist", "--lr", "0.01", "--betas", "0", "0.9", "--loss", "hinge"]
    assert train(data, tmp_path, *words, *TINY, "--image-size", "16") == 0
    state, settings = newest(tmp_path)
    assert (settings["image_size"], settings["loss"]) == (16, "hinge")
    (group,) = state["optimizer_d"]["param_groups"]
    assert (group["lr"], tuple(group["betas"])) == (0.01, (0, 0.9))


def test_eps_reaches_the_layers_of_the_mlp_and_of_no_other_model(data: str, tmp_path: Path) -> None:
    for out, model, options in (("a", "mlp", {"eps": 0.8}), ("b", "dcgan", {})):
        words = ["--preset", "mlp-mnist", "--model", model, "--image-size", "16"]
        assert train(data, tmp_path / out, *words, *TINY) == 0
        state, settings = newest(tmp_path / out)
        assert settings["model_options"] == options
        built = models.build(model, **state["configuration"]["model"]["options"])
        norms = [
            m for m in built.generator.modules() if isinstance(m, nn.modules.batchnorm._NormBase)
        ]
        assert {norm.eps for norm in norms} == {options.get("eps", 1e-5)}


def test_a_run_of_a_preset_is_resumed_with_its_own_values(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "keras-dcgan", *TINY]
    assert train(data, tmp_path / "whole", *words, "--steps", "4") == 0
    assert train(data, tmp_path / "cut", *words) == 0
    monkeypatch.setitem(PRESETS, "keras-dcgan", {"learning_rate": 1.0})  # a later version's
    for more in ([], ["--preset", "keras-dcgan"]):
        out = str(tmp_path / "cut")
        assert main(["train", "--resume", "--out", out, "--steps", "4", *more]) == 0
    (whole, settings), (cut, others) = newest(tmp_path / "whole"), newest(tmp_path / "cut")
    assert settings == others
    assert all(
        torch.equal(value, cut["generator"][key]) for key, value in whole["generator"].items()
    )
    assert main(["train", "--resume", "--out", str(tmp_path / "cut"), "--preset", "dcgan"]) == 2
    assert "--preset dcgan contradicts" in capsys.readouterr().err


def test_an_unknown_preset_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("digits", tmp_path, "--preset", "biggan") == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'biggan'" in error
    assert error.count("\n") == 1


def test_dropout_makes_the_step_judge_images_in_two_passes() -> None:
    gan = models.keras_dcgan(image_size=16, channels=1, width=4, latent=6)
    adams = [torch.optim.Adam(model.parameters(), 1e-4) for model in gan[:2]]
    step = GANStep(*gan[:2], *adams, GANLoss(), gan.latent, paired=True)
    assert torch.isfinite(torch.stack(step(torch.zeros(8, 1, 16, 16)))).all()
    assert step.pairing.explain() == "no: one pass gives other scores or buffers than two"
