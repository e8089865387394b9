"""The example in PyTorch Lightning: the numbers of GANStep alone, and Lightning's own counting."""

from __future__ import annotations

import csv
import importlib.util
from types import ModuleType

import pytest
import torch
from paths import ROOT

for package in ("lightning", "torchvision", "sklearn"):
    pytest.importorskip(package)

EXAMPLE = ROOT / "examples" / "lightning_dcgan.py"
STEPS = 6
TINY = ["--image-size", "16", "--width", "4", "--batch-size", "8", "--accelerator", "cpu"]

# Lightning's own, with what sets each off; of ganfast's warnings none is filtered.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.isinstance.treespec, LeafSpec.:FutureWarning"
    ),  # torch 2.15
    pytest.mark.filterwarnings("ignore:GPU available but not used"),  # on a machine that has one
]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lightning_dcgan", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_trains_with_the_numbers_of_a_plain_loop(example, tmp_path):
    from ganfast.models import dcgan
    from ganfast.nn import GANLoss
    from ganfast.training import Batches, GANStep, load_images

    words = ["--data", "digits", "--steps", str(STEPS), "--out", str(tmp_path), *TINY]
    trained = example.main(words)
    assert (tmp_path / "samples.png").stat().st_size > 1000

    torch.manual_seed(0)
    batches = Batches(load_images("digits", image_size=16), 8)
    gan = dcgan(image_size=16, channels=1, width=4)
    before = [p.detach().clone() for p in gan.generator.parameters()]
    adams = [torch.optim.Adam(m.parameters(), 5e-4, (0.5, 0.999), fused=True) for m in gan[:2]]
    step = GANStep(*gan[:2], *adams, GANLoss(), gan.latent)
    results = [step(next(batches)) for _ in range(STEPS)]

    assert all(torch.isfinite(torch.stack(result)).all() for result in results)
    for ours, theirs in zip(
        (gan.generator, gan.discriminator), (trained.generator, trained.discriminator), strict=True
    ):
        for name, value in theirs.state_dict().items():
            assert torch.equal(value, ours.state_dict()[name]), name
    moved = [not torch.equal(a, b) for a, b in zip(before, gan.generator.parameters(), strict=True)]
    assert all(moved)


def test_lightning_counts_logs_and_saves(example, tmp_path, monkeypatch):
    monkeypatch.setattr(
        example.L, "Trainer", lambda **options: Trainer(**{**options, "log_every_n_steps": 1})
    )
    from lightning.pytorch import Trainer

    words = ["--data", "digits", "--steps", str(STEPS), "--out", str(tmp_path), *TINY]
    trained = example.main(words)
    assert trained.trainer.global_step == 2 * STEPS
    (metrics,) = tmp_path.glob("**/metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= STEPS / 2
    assert {"d_loss", "g_loss", "real_score", "fake_score"} <= rows[0].keys()
    assert all(0 < float(row["real_score"]) < 1 for row in rows)
    (checkpoint,) = tmp_path.glob("**/*.ckpt")
    again = example.LightningDCGAN.load_from_checkpoint(checkpoint)
    for name, value in again.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
