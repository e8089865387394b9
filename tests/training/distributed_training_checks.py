"""What two training processes must agree on; ``test_distributed_training.py`` starts them.

Each check compares this process with one that trains alone, on the whole of every batch.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import ganfast
from ganfast.cli import main
from ganfast.models import GAN, dcgan, mlp_gan
from ganfast.nn import GANLoss
from ganfast.training import (
    Batches,
    DataError,
    GANStep,
    ImageData,
    Processes,
    Trainer,
    TrainingOptions,
    TrainingWarning,
    joined,
)

STEPS = 10
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def tiny_gan(build: Any = dcgan, seed: int = 0) -> GAN:
    torch.manual_seed(seed)
    gan = build(image_size=16, channels=1, width=4, latent=6)
    for network in gan[:2]:
        network.double()
    return gan


def whole_batches(count: int = STEPS) -> Iterable[Tensor]:
    rng = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.rand(8, 1, 16, 16, generator=rng, dtype=torch.float64) * 2 - 1


def random_images() -> ImageData:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, 16, 16), generator=rng, dtype=torch.uint8)
    return ImageData("random", pixels, torch.arange(40) % 2)


def make_step(gan: GAN, **options: Any) -> GANStep:
    adams = [torch.optim.Adam(m.parameters(), 1e-3, (0.5, 0.999)) for m in gan[:2]]
    torch.manual_seed(3)
    return GANStep(
        *gan[:2],
        *adams,
        GANLoss(options.pop("kind", "bce")),
        gan.latent,
        **{"paired": True, "channels_last": False, **options},
    )


def assert_same_everywhere(*models: nn.Module) -> None:
    """Compare every bit of the parameters with process 0's."""
    for model in models:
        for name, value in model.named_parameters():
            first = value.detach().clone().contiguous()
            dist.broadcast(first, 0)
            assert torch.equal(first, value), name


def check_batches(processes: Processes, out: Path) -> None:
    alone = Batches(random_images(), 8, seed=2)
    shared = Batches(random_images(), 8, seed=2, processes=processes)
    for _ in range(7):  # into the second epoch
        batch, part = next(alone), next(shared)
        assert torch.equal(part, batch[4 * processes.rank :][:4])
    for name, value in alone.state_dict().items():
        assert torch.equal(torch.as_tensor(shared.state_dict()[name]), torch.as_tensor(value))


def check_step(processes: Processes, out: Path) -> None:
    """Steps of two processes have the numbers of one, whatever weights the second began with."""
    kinds = [{"kind": kind} for kind in ("bce", "hinge", "lsgan", "wasserstein")]
    penalised = {"kind": "wasserstein", "penalty": 10.0, "r1": 2.0, "ema": 0.9}
    variants = [(dcgan, options) for options in (*kinds, penalised, {"paired": False})]
    for build, options in (*variants, (mlp_gan, {"penalty": 1.0})):
        alone = tiny_gan(build)
        together = tiny_gan(build, seed=processes.rank)
        for network in together[:2]:
            ganfast.convert_sync_batchnorm(network)
        step = make_step(alone, **options)
        expected = [list(step(batch)) for batch in whole_batches()]
        shared = make_step(together, processes=processes, **options)
        found = [list(shared(processes.part(batch))) for batch in whole_batches()]
        said = f"{build.__name__}, {options}"
        close(torch.tensor(found), torch.tensor(expected), said)
        pairs = [*zip(together[:2], alone[:2], strict=True)]
        if step.average is not None:
            pairs.append((shared.average.generator, step.average.generator))
        for ours, theirs in pairs:
            values = ours.state_dict()
            for name, value in theirs.state_dict().items():
                # A bias before a normalisation has no gradient but rounding, which Adam enlarges.
                if build is dcgan or name not in ("model.2.bias", "model.5.bias", "model.8.bias"):
                    close(values[name], value, f"{said}: {name}")
        assert_same_everywhere(*together[:2])
        assert shared.explain() == step.explain()


def close(found: Tensor, expected: Tensor, said: str) -> None:
    torch.testing.assert_close(found, expected, **TOLERANCE, msg=lambda text: f"{said}: {text}")


def check_gradients(processes: Processes, out: Path) -> None:
    """Gradients keep their memory and layout; those that are absent stay so."""
    wide = torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    shapes = [wide, torch.zeros(3, dtype=torch.float64), torch.zeros(()), torch.zeros(2)]
    parameters = [nn.Parameter(value) for value in shapes]
    for index, parameter in enumerate(parameters[:3]):
        values = torch.arange(parameter.numel()).reshape(parameter.shape) + index
        parameter.grad = torch.empty_like(parameter).copy_(values * (1 + 2 * processes.rank))
    gradients = [p.grad for p in parameters]
    processes.average_gradients(parameters)
    for index, (parameter, gradient) in enumerate(zip(parameters[:3], gradients, strict=False)):
        values = torch.arange(parameter.numel()).reshape(parameter.shape) + index
        assert parameter.grad is gradient
        assert parameter.grad.stride() == parameter.stride()
        assert torch.equal(gradient, 2 * values.to(gradient.dtype))
    assert parameters[3].grad is None


def check_overflow(processes: Processes, out: Path) -> None:
    """What overflows in one process is skipped in all."""
    gan = tiny_gan(mlp_gan)
    for network in gan[:2]:
        network.float()
    before = copy.deepcopy(gan.discriminator.state_dict())
    step = make_step(gan, precision="fp16", processes=processes)
    scale = step.scaler.get_scale()
    (batch,) = whole_batches(1)
    batch[-1] = torch.inf  # in process 1
    step(processes.part(batch).float())
    for name, value in gan.discriminator.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert step.scaler.get_scale() == scale / 2


def check_pairing(processes: Processes, out: Path) -> None:
    """Unless all can judge two batches in one pass, none does."""
    gan = tiny_gan()
    step = make_step(gan, processes=processes)
    if processes.rank == 1:
        step.pairing._why_not = lambda real: "it cannot be tried here"
    (batch,) = whole_batches(1)
    step(processes.part(batch))
    reason = ("another process found that it cannot be done", "it cannot be tried here")
    assert f"paired: no: {reason[processes.rank]}" in step.explain()


def make_trainer(processes: Processes, out: Path, **options: Any) -> Trainer:
    gan = tiny_gan()
    for network in gan[:2]:
        network.float()
    chosen = TrainingOptions(steps=9, batch_size=8, log_every=2, checkpoint_every=3, **options)
    return Trainer(gan, random_images(), chosen, out=out, processes=processes)


def check_rollback(processes: Processes, out: Path) -> None:
    """A weight lost in one process sends all back to the same checkpoint."""
    # Step 5 is looked at because process 0 measures quality then.
    trainer = make_trainer(processes, out / "rollback", on_nan="rollback", quality_every=5)
    original = trainer.train_step.update

    def update(real: Tensor) -> Any:
        result = original(real)
        if trainer.step == 4 and processes.rank == 1 and not trainer._rollbacks:
            with torch.no_grad():
                next(trainer.generator.parameters()).fill_(torch.nan)
        return result

    trainer.train_step.update = update
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trainer.run()
    assert [warning.category for warning in caught] == [TrainingWarning]
    assert trainer._rollbacks == 1
    assert trainer.optimizer_d.param_groups[0]["lr"] == 1e-4
    assert (trainer.quality is None) == (processes.rank == 1)
    assert_same_everywhere(trainer.generator, trainer.discriminator)
    assert all(torch.isfinite(p).all() for p in trainer.generator.parameters())


def check_stop(processes: Processes, out: Path) -> None:
    """A stop asked of one process ends all after the same step."""
    trainer = make_trainer(processes, out / "stop")
    original = trainer.train_step.update

    def update(real: Tensor) -> Any:
        if trainer.step == 3 and processes.rank == 1:
            trainer.stop()
        return original(real)

    trainer.train_step.update = update
    assert not trainer.run()
    assert trainer.step == 4
    assert (out / "stop" / "checkpoint-00000004.safetensors").exists()


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def fail_in_one(words: list[str]) -> int:
    """Run a command whose data fail in process 1, in its third step."""
    original, served = Batches.__next__, iter(range(1000))

    def fail(batches: Batches) -> Tensor:
        if batches._processes.rank == 1 and next(served) == 2:
            raise DataError("image 7 cannot be read")
        return original(batches)

    Batches.__next__ = fail
    return main(words)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.exit(fail_in_one(sys.argv[1:]))
    with joined(torch.device("cpu")) as processes:
        for name, check in CHECKS.items():
            if sys.argv[2:] and name not in sys.argv[2:]:
                continue
            check(processes, Path(sys.argv[1]))
            processes.any(False)
            if processes.leads:
                print(f"{name} holds", flush=True)
