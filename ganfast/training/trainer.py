"""The training loop and the files that it writes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganfast.models import GAN
from ganfast.nn import GANLoss
from ganfast.training.adam import restore_adam
from ganfast.training.batches import Batches, as_float
from ganfast.training.checkpoints import (
    SUFFIX,
    load_newest,
    save_checkpoint,
    write_checkpoint,
)
from ganfast.training.data import ImageData
from ganfast.training.errors import (
    MALFORMED,
    CheckpointError,
    DataError,
    DivergenceError,
    TrainingWarning,
    first_line,
)
from ganfast.training.health import Health
from ganfast.training.journal import WRITTEN, Journal
from ganfast.training.memory import keep_freed_memory
from ganfast.training.options import TrainingOptions
from ganfast.training.output import locked, set_aside
from ganfast.training.processes import Processes
from ganfast.training.progress import Progress
from ganfast.training.quality import Quality
from ganfast.training.step import GANStep, StepResult

__all__ = ["Trainer"]

SAMPLES = 64  # an 8x8 grid
ROLLBACKS = 3
STEP_OPTIONS = (
    "paired", "precision", "channels_last", "capture", "ema", "penalty", "r1", "n_critic",
    "accumulate", "clip_norm", "diff_augment", "compile",
)  # fmt: skip
"""Options that the step has by the same names."""
BEST = f"best{SUFFIX}"


class Trainer:
    """Train a GAN on images, measuring, drawing and saving along the way.

    Below ``out`` it writes ``metrics.csv``, ``losses.png``, ``samples-000500.png`` and the like,
    ``samples.png`` at the end, and checkpoints from which a run continues as if it had never
    stopped: on a CPU, with the same bits. If quality is measured, ``quality.csv`` has the Frechet
    distances and ``best.safetensors`` is the checkpoint of the least. It warns of a discriminator
    that has won and of mode collapse.

    Noise comes from torch's global generator, and ``seed`` sets the order of the images; call
    ``torch.manual_seed`` before building the models to repeat a whole run.

    With several processes, each builds the same trainer; rank 0 writes the files, and a rollback
    reads its checkpoint in all: they must share the folder.

    Args:
        gan: the models to train, moved to ``device``.
        data: images of the shape ``gan.image_shape``.
        options: length of the training, optimiser and intervals.
        out: folder for what is written; made if missing.
        device: to train on.
        configuration: numbers, strings, lists and dicts kept in every checkpoint, such as what is
            needed to build the models again.
        processes: that train together, each with its part of every batch of
            ``options.batch_size`` images; None for this one alone.

    Raises:
        DataError: if the images do not have the model's shape, do not fill one batch, or have no
            labels to measure quality with.
        ValueError: if an option is not one of those allowed.
        OSError: if ``out`` cannot be made or written to.

    Examples:
        >>> import tempfile
        >>> from ganfast.models import dcgan
        >>> from ganfast.training import Trainer, TrainingOptions, load_images
        >>> data = load_images("digits", image_size=16)
        >>> gan = dcgan(image_size=16, channels=1, width=8)
        >>> trainer = Trainer(gan, data, TrainingOptions(steps=2), out=tempfile.mkdtemp())
        >>> trainer.run()
        True
    """

    def __init__(
        self,
        gan: GAN,
        data: ImageData,
        options: TrainingOptions,
        *,
        out: str | Path,
        device: torch.device | str = "cpu",
        configuration: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        if data.image_shape != gan.image_shape:
            raise DataError(
                f"{data.name} has images [C, H, W] = {list(data.image_shape)}, "
                f"the model makes {list(gan.image_shape)}"
            )
        self.options = options
        self.device = torch.device(device)
        self.configuration = dict(configuration or {})
        self.processes = processes or Processes()
        self.generator = gan.generator.to(self.device)
        self.discriminator = gan.discriminator.to(self.device)
        self.optimizer_g = self._adam(self.generator)
        self.optimizer_d = self._adam(self.discriminator)
        self.batches = Batches(
            data,
            options.batch_size,
            seed=options.seed,
            device=self.device,
            processes=self.processes,
        )
        self.train_step = GANStep(
            self.generator,
            self.discriminator,
            self.optimizer_g,
            self.optimizer_d,
            GANLoss(options.loss),
            gan.latent,
            **{name: getattr(options, name) for name in STEP_OPTIONS},
            processes=self.processes,
        )
        # What checkpoints keep: "auto" may be another precision on another machine.
        self.options = replace(options, precision=self.train_step.precision)
        self.fixed_noise = torch.randn(SAMPLES, *gan.latent).to(self.device)
        self.step = 0
        self.out = Path(out)
        if self.processes.leads:
            self.out.mkdir(parents=True, exist_ok=True)
        health = Health(as_float(data.images[:SAMPLES]), options.loss)
        self.journal = Journal(
            self.out, options.batch_size, health, tensorboard=options.tensorboard
        )
        measures = options.quality_every and self.processes.leads
        self.quality = Quality(data, device=self.device) if measures else None
        self._stop_requested = False
        self._stopping = False
        self._saved_step: int | None = None
        self._rollbacks = 0
        self._resumed = False
        self._allow_other_data = False

    def _adam(self, model: torch.nn.Module) -> torch.optim.Adam:
        # One kernel for all parameters instead of several for each.
        return torch.optim.Adam(
            model.parameters(), self.options.learning_rate, self.options.betas, fused=True
        )

    def run(self) -> bool:
        """Train up to ``options.steps`` and return True, or False if ``stop`` ended it earlier.

        A folder that already holds a run keeps it: unless this trainer resumed from it, its files
        are moved to a folder ``earlier-1`` beside the new ones.

        Raises:
            DivergenceError: if a loss is not finite and no rollback is left.
            OSError: if a file cannot be written, or another process writes to the folder.
        """
        with locked(self.out) if self.processes.leads else nullcontext():
            return self._run()

    def _run(self) -> bool:
        if self.options.keep_memory and self.device.type == "cpu":
            keep_freed_memory()
        with self.processes.first_before_others():
            if self.processes.leads:
                self._begin_files()
        steps, leads = self.options.steps, self.processes.leads
        with Progress(self.step, steps, self.options.batch_size, shown=leads) as progress:
            while self.step < steps and not self._stopping:
                with self.journal.waiting_for_data():
                    real = next(self.batches)
                result = self.train_step(real)
                self.step += 1
                self._stopping = self.processes.any(self._stop_requested)
                measured: dict[str, float] = {}
                if self._diverged(result):
                    self._roll_back(result)
                elif leads:
                    measured = self._write_what_is_due(result)
                progress.update(self.step, measured)
        with self.processes.first_before_others():
            if self.processes.leads:
                self._end_files()
        return self.step >= steps

    def stop(self) -> None:
        """Ask ``run`` to end after the step it is in; safe to call from a signal handler."""
        self._stop_requested = True

    def _due(self, interval: int) -> bool:
        return self.step % interval == 0

    def _quality_due(self) -> bool:
        every = self.options.quality_every
        return every > 0 and (self._due(every) or self.step == self.options.steps)

    def _diverged(self, result: StepResult) -> bool:
        """Check the losses before they are written, and the weights before they are saved."""
        last = self.step == self.options.steps or self._stopping
        if last or self._due(self.options.checkpoint_every) or self._quality_due():
            weights: list[Tensor] = [*self.generator.parameters(), *self.discriminator.parameters()]
            norms = torch.stack(torch._foreach_norm(weights))
            finite = torch.isfinite(norms.sum() + result.d_loss + result.g_loss)
        elif self._due(self.options.log_every):
            finite = torch.isfinite(result.d_loss + result.g_loss)
        else:
            return False
        return self.processes.any(not finite)

    def _roll_back(self, result: StepResult) -> None:
        """Go back to the newest checkpoint with half the learning rate, or raise."""
        self.processes.any(True)  # rank 0 has then written the checkpoint that all read
        seen = (
            f"at step {self.step} a loss or a weight is not finite: the discriminator's loss is "
            f"{result.d_loss.item()}, the generator's {result.g_loss.item()}"
        )
        try:
            path, state = load_newest(self.out)
        except CheckpointError as error:
            raise DivergenceError(f"{seen}; there is no checkpoint to go back to") from error
        if self._rollbacks == (ROLLBACKS if self.options.on_nan == "rollback" else 0):
            raise DivergenceError(f"{seen}; the last good checkpoint is {path}")
        self._rollbacks += 1
        rate = self.options.learning_rate * 0.5**self._rollbacks
        self.restore(state)
        for optimizer in (self.optimizer_g, self.optimizer_d):
            for group in optimizer.param_groups:
                group["lr"] = rate
        if self.processes.leads:
            self.journal.begin(self.step)
        message = f"{seen}; went back to {path} with learning rate {rate:g}"
        warnings.warn(message, TrainingWarning, stacklevel=3)

    def _measure_quality(self, quality: Quality) -> None:
        """Measure the same latent vectors each time, and keep the best checkpoint."""
        rng = torch.Generator().manual_seed(0)
        latent = self.fixed_noise.shape[1:]
        distance = quality(
            lambda count: self.sample(torch.randn(count, *latent, generator=rng).to(self.device))
        )
        if self.journal.write_quality(self.step, distance):
            write_checkpoint(self.out / BEST, self.step, self._state())

    @torch.no_grad()
    def sample(self, noise: Tensor) -> Tensor:
        """Generate images ``[N, C, H, W]`` in [-1, 1] with running statistics.

        The generator is the average of weights, if one is kept.
        """
        average = self.train_step.average
        generator = self.generator if average is None else average.generator
        was_training = generator.training
        generator.eval()
        try:
            images: Tensor = generator(noise)
        finally:
            generator.train(was_training)
        return images

    def save_samples(self, name: str) -> None:
        """Draw the generator's images of the run's fixed noise, always the same 64."""
        self.journal.write_samples(self.step, self.sample(self.fixed_noise).cpu(), name)

    def save(self) -> Path:
        """Write a checkpoint of everything the rest of the run depends on."""
        keep = self.options.keep_checkpoints
        self._saved_step = self.step
        return save_checkpoint(self.out, self.step, self._state(), keep=keep)

    def _state(self) -> dict[str, Any]:
        cuda_rng = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "configuration": self.configuration,
            "options": asdict(self.options),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "step_state": self.train_step.state_dict(),
            "batches": self.batches.state_dict(),
            "fixed_noise": self.fixed_noise,
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda_rng,
        }

    def restore(self, state: Mapping[str, Any], *, allow_other_data: bool = False) -> None:
        """Continue from a checkpoint, as ``load_newest`` or ``load_checkpoint`` returns it.

        Raises:
            CheckpointError: if it belongs to other models, a longer run or, unless
                ``allow_other_data``, other images.
        """
        self._allow_other_data |= allow_other_data  # for a later rollback too
        if state["step"] > self.options.steps:
            raise CheckpointError(
                f"the checkpoint is at step {state['step']}, beyond the {self.options.steps} "
                "steps asked for"
            )
        try:
            self.generator.load_state_dict(state["generator"])
            self.discriminator.load_state_dict(state["discriminator"])
            restore_adam(self.optimizer_g, state["optimizer_g"])
            restore_adam(self.optimizer_d, state["optimizer_d"])
            self.train_step.load_state_dict(state["step_state"])
            self.batches.load_state_dict(state["batches"], allow_other_data=self._allow_other_data)
            self.fixed_noise.copy_(state["fixed_noise"].view_as(self.fixed_noise))
            torch.set_rng_state(state["rng"])
            if self.device.type == "cuda" and state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        except MALFORMED as error:
            raise CheckpointError(
                f"the checkpoint does not fit this run: {first_line(error)}"
            ) from error
        self.step = self._saved_step = state["step"]
        self._resumed = True

    def _begin_files(self) -> None:
        if not self._resumed:
            set_aside(self.out, (f"checkpoint-*{SUFFIX}", BEST, *WRITTEN))
        self.journal.begin(self.step)

    def _write_what_is_due(self, result: StepResult) -> dict[str, float]:
        """Write what is due at this step, and return its metrics, if they are due."""
        measured = {}
        if self._due(self.options.log_every):
            measured = self.journal.write_metrics(self.step, result)
        if self._due(self.options.sample_every):
            self.save_samples(f"samples-{self.step:06d}.png")
        if self.quality is not None and self._quality_due():
            self._measure_quality(self.quality)
        if self._due(self.options.checkpoint_every):
            self.save()
        return measured

    def _end_files(self) -> None:
        if self._saved_step != self.step:
            self.save()
        self.save_samples("samples.png")
        self.journal.plot()
        self.journal.close()
