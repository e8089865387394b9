"""The training loop: files, checkpoints, exact resumption."""

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from ganfast.models import GAN, dcgan  # noqa: E402
from ganfast.training import (  # noqa: E402
    CheckpointError,
    DataError,
    GANStep,
    ImageData,
    Trainer,
    TrainingOptions,
    load_checkpoint,
    load_newest,
)
from ganfast.training.figures import plot_losses, save_grid  # noqa: E402

COLUMNS = ["step", "d_loss", "g_loss", "real_score", "fake_score"]
COLUMNS += ["images_per_second", "data_ms", "compute_ms"]


def tiny_gan(seed: int = 0) -> GAN:
    torch.manual_seed(seed)
    return dcgan(image_size=16, channels=1, width=4, latent=6)


def random_images(count: int = 40, size: int = 16) -> ImageData:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, size, size), generator=rng, dtype=torch.uint8)
    return ImageData("random", pixels)


def make_trainer(out: Path, *, seed: int = 0, **options: Any) -> Trainer:
    defaults = {"steps": 12, "batch_size": 8, "log_every": 2, "sample_every": 6}
    chosen = TrainingOptions(**{**defaults, "checkpoint_every": 6, **options})
    return Trainer(tiny_gan(seed), random_images(), chosen, out=out)


def rows(out: Path) -> list[list[str]]:
    """Read the measurements, without the last columns, which are times."""
    with (out / "metrics.csv").open(newline="") as file:
        return [row[:-3] for row in csv.reader(file)]


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Flatten nested dicts and lists into path: leaf."""
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        return {path: value}
    return {k: v for name, child in children for k, v in leaves(child, f"{path}/{name}").items()}


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(actual[name], value) if torch.is_tensor(value) else actual[name] == value
        assert same, name


# --- the loop ---


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "deep" / "run")
    assert trainer.run() is True
    assert sorted(p.name for p in trainer.out.iterdir()) == [
        "checkpoint-00000006.safetensors",
        "checkpoint-00000012.safetensors",
        "losses.png",
        "metrics.csv",
        "samples-000006.png",
        "samples-000012.png",
        "samples.png",
    ]
    with (trainer.out / "metrics.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == COLUMNS
    assert [row[0] for row in table[1:]] == ["2", "4", "6", "8", "10", "12"]
    for row in table[1:]:
        assert all(float(value) > 0 for value in row)
        assert float(row[3]) < 1
        assert float(row[4]) < 1
    with Image.open(trainer.out / "samples.png") as grid:
        assert grid.size == (8 * 68 + 4, 8 * 68 + 4)  # 64 pixels an image and 4 between them
    with Image.open(trainer.out / "losses.png") as plot:
        assert min(plot.size) > 500


def test_a_seed_repeats_a_run(tmp_path: Path) -> None:
    trainers = [make_trainer(tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4))]
    states = []
    for trainer, seed in zip(trainers, (3, 3, 4), strict=True):
        torch.manual_seed(seed)
        trainer.fixed_noise = torch.randn_like(trainer.fixed_noise)
        trainer.run()
        states.append(load_checkpoint(trainer.out / "checkpoint-00000012.safetensors"))
    assert_same_bits(states[0], states[1])
    assert rows(trainers[0].out) == rows(trainers[1].out)
    assert rows(trainers[0].out) != rows(trainers[2].out)


@pytest.mark.parametrize("killed_after", [7, 9, 12])
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, killed_after: int
) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    # A run that is killed some steps after its checkpoint at 6: rows beyond it are already there.
    killed = make_trainer(tmp_path / "killed", steps=killed_after)
    killed.run()
    for checkpoint in killed.out.glob("checkpoint-*.safetensors"):
        if checkpoint.name != "checkpoint-00000006.safetensors":
            checkpoint.unlink()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "killed", seed=99)
    resumed.restore(load_newest(resumed.out)[1])
    assert resumed.step == 6
    assert resumed.run() is True

    name = "checkpoint-00000012.safetensors"
    assert_same_bits(load_checkpoint(resumed.out / name), load_checkpoint(whole.out / name))
    assert rows(resumed.out) == rows(whole.out)
    pictures = [t.out / "samples.png" for t in (resumed, whole)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_stop_ends_after_the_step_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)

    def stop_in_step_three(step: GANStep, real: torch.Tensor) -> Any:
        if trainer.step == 2:
            trainer.stop()
        return original(step, real)

    original = GANStep.__call__
    monkeypatch.setattr(GANStep, "__call__", stop_in_step_three)
    assert trainer.run() is False
    assert load_newest(tmp_path)[1]["step"] == 3
    resumed = make_trainer(tmp_path)
    resumed.restore(load_newest(tmp_path)[1])
    resumed.run()
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    assert rows(tmp_path) == rows(whole.out)


def test_drawing_samples_changes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.run()
    before = copy.deepcopy(trainer.generator.state_dict())
    rng = torch.get_rng_state()
    first = trainer.sample(trainer.fixed_noise)
    assert trainer.generator.training
    assert not first.requires_grad
    # One by one gives the same images: no statistics of the batch are used.
    assert torch.allclose(trainer.sample(trainer.fixed_noise[:1]), first[:1], atol=1e-6)
    assert_same_bits(trainer.generator.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), rng)


def test_an_earlier_run_is_set_aside_not_overwritten(tmp_path: Path) -> None:
    make_trainer(tmp_path).run()
    earlier = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "notes.txt").write_text("not ours")
    for number in (1, 2):
        make_trainer(tmp_path, steps=2).run()
        assert (tmp_path / f"earlier-{number}").is_dir()
    kept = {p.name: p.read_bytes() for p in (tmp_path / "earlier-1").iterdir()}
    assert kept == earlier
    assert (tmp_path / "notes.txt").exists()
    assert load_newest(tmp_path)[1]["step"] == 2


def test_configuration_is_kept(tmp_path: Path) -> None:
    configuration = {"model": {"name": "dcgan", "options": {"width": 4}}}
    options = TrainingOptions(steps=1, batch_size=8)
    Trainer(tiny_gan(), random_images(), options, out=tmp_path, configuration=configuration).run()
    assert load_newest(tmp_path)[1]["configuration"] == configuration


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\[1, 8, 8\], the model makes \[1, 16, 16\]"):
        Trainer(tiny_gan(), random_images(size=8), TrainingOptions(), out=tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).run()
    state = load_newest(tmp_path)[1]
    with pytest.raises(CheckpointError, match="step 12, beyond the 3 steps"):
        make_trainer(tmp_path, steps=3).restore(state)
    with pytest.raises(CheckpointError, match="does not fit"):
        make_trainer(tmp_path, batch_size=4).restore(state)
    other = Trainer(
        dcgan(image_size=16, channels=1, width=8, latent=6),
        random_images(),
        TrainingOptions(steps=12, batch_size=8),
        out=tmp_path,
    )
    with pytest.raises(CheckpointError, match="does not fit"):
        other.restore(state)


# --- pictures ---


def test_grid_shows_every_image_in_its_place(tmp_path: Path) -> None:
    values = torch.linspace(-1, 1, 20)
    save_grid(values.reshape(20, 1, 1, 1).expand(20, 3, 32, 32), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (8 * 68 + 4, 3 * 68 + 4)
        for index, value in enumerate(values.tolist()):
            x, y = 68 * (index % 8) + 36, 68 * (index // 8) + 36
            assert grid.getpixel((x, y)) == pytest.approx(((value + 1) * 127.5,) * 3, abs=1)


def test_losses_are_plotted_without_a_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    for values in ([], [0.5], [0.5, 0.25]):
        plot_losses(dict.fromkeys(COLUMNS, values), tmp_path / "losses.png")
        with Image.open(tmp_path / "losses.png") as plot:
            assert min(plot.size) > 500
