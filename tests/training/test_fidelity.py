"""FID, KID and IS by torch-fidelity, with weights that are drawn: the true ones are not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)

from ganfast.cli import main  # noqa: E402
from ganfast.training import DataError  # noqa: E402
from ganfast.training import fidelity as module  # noqa: E402

TINY = ["--image-size", "16", "--width", "4", "--latent", "6", "--batch-size", "8"]


def test_what_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    words = ["train", "--data", "digits", *TINY, "--out", str(tmp_path / "run"), "--fidelity"]
    for installed, said in ((False, "pip install torch-fidelity"), (True, "save https://github")):
        spec = object() if installed else None
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(DataError, match=said):
            module.find_inception()
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "FID, KID and IS need" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # of torch-fidelity's own
def test_the_figures_are_torch_fidelitys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / module.INCEPTION
    torch.save({}, path)
    with monkeypatch.context() as unloaded:
        extractor = inception.FeatureExtractorInceptionV3
        unloaded.setattr(extractor, "load_state_dict", lambda *_: None)
        drawn = extractor("drawn", ["2048"], feature_extractor_weights_path=path).state_dict()
    torch.save(drawn, path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    rng = torch.Generator().manual_seed(0)
    real, other = (
        torch.randint(0, high, (6, 1, 16, 16), generator=rng, dtype=torch.uint8)
        for high in (256, 60)
    )
    same, far = (module.fidelity(real, fake) for fake in (real.clone(), other))
    assert abs(same["frechet_inception_distance"]) < 0.01 * far["frechet_inception_distance"]
    assert same["inception_score_mean"] >= 1

    monkeypatch.setattr("ganfast.cli.train.FIDELITY_IMAGES", 6)
    words = ["train", "--data", "digits", *TINY, "--out", str(tmp_path / "run"), "--fidelity"]
    assert main([*words, "--steps", "2", "--quality-every", "0"]) == 0
    written = json.loads((tmp_path / "run" / "fidelity.json").read_text())
    assert (written["step"], written["real"], written["generated"]) == (2, 6, 6)
    assert f"FID {written['frechet_inception_distance']:.2f}" in capsys.readouterr().out
