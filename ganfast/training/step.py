"""One training step of a GAN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganfast.machine import native_precisions, require_native
from ganfast.nn import GANLoss
from ganfast.training.augmentation import augment
from ganfast.training.batch import Batch, as_list, detached
from ganfast.training.capture import CapturedStep
from ganfast.training.ema import WeightAverage
from ganfast.training.layout import Layout
from ganfast.training.options import PRECISIONS, TrainingOptions, check_options
from ganfast.training.pairing import Pairing
from ganfast.training.penalties import gradient_penalty, r1_penalty
from ganfast.training.processes import Processes

__all__ = ["GANStep", "StepResult"]


class StepResult(NamedTuple):
    """What one step measured: scalars on the device, so that reading them is the caller's choice.

    ``real_score`` and ``fake_score`` are the mean scores of real and generated images before the
    discriminator's update: probabilities to be real for the loss "bce". ``d_loss`` contains the
    penalty, if there is one. Of several updates of the discriminator, these are of the last.
    """

    d_loss: Tensor
    g_loss: Tensor
    real_score: Tensor
    fake_score: Tensor


class GANStep:
    """Update the discriminator, then the generator, once for a batch of real images.

    The generator is scored by the updated discriminator. With ``precision="fp32"`` this follows
    https://github.com/pytorch/examples/blob/main/dcgan/main.py number for number, whatever the
    layout, pairing and capture.

    Args:
        generator: maps latent vectors ``[N, *latent]``, and labels if the step is given any, to
            images.
        discriminator: maps images, and labels if the step is given any, to scores, batch first, or
            to a list of such scores (multi-scale discriminators).
        optimizer_g: of the generator's parameters.
        optimizer_d: of the discriminator's parameters.
        loss: both networks' losses.
        latent: shape of one latent vector, drawn from N(0, 1); or a function that takes the batch
            size and returns the batch of them.
        paired: whether the discriminator sees real and generated images in one batch, each half
            normalised with its own statistics: the numbers of two passes with half the launches,
            and both halves in memory at once. If a layer does not allow it, two passes are made
            and :meth:`explain` says why. None pairs on GPUs, to save launches.
        precision: "fp32"; "bf16" or "fp16" for what torch.autocast computes in these dtypes, with
            scaled losses for "fp16"; "auto" for the best one that the device has instructions for.
            Parameters stay as they are.
        channels_last: whether weights and images are laid out channels-last; None for what is
            faster: on a CPU both are timed before the first step, on copies (up to 2 seconds, once
            in a process for networks and batches of the same shapes), on GPUs "bf16" and "fp16"
            are channels-last. The choice is part of ``state_dict``, for a resumed run's bits.
        capture: "auto" replays the whole step as one CUDA graph if that is possible; "always"
            raises if it is not; "never".
        ema: decay of an average of the generator's weights, a :class:`WeightAverage` kept in
            ``self.average``; None for none.
        penalty: weight of the gradient penalty (Gulrajani et al. 2017, equation 3), 0 for none.
        r1: weight gamma of the penalty on the gradient at real images (Mescheder et al. 2018,
            equation 9), 0 for none.
        n_critic: updates of the discriminator before one of the generator, each with its part of
            the batch: give ``n_critic`` times the images.
        accumulate: parts of a batch whose gradients are averaged before an update, one part in
            memory at a time. Above 1, the generator's update draws its own latent vectors.
        clip_norm: largest norm of either network's gradient; None for no limit.
        diff_augment: whether the discriminator sees images changed at random, real and generated
            ones alike, in both updates (Zhao et al. 2020, figure 5).
        compile: whether both networks are compiled by torch.compile with the backend "ganfast", for
            the shapes of the first batch; what a penalty differentiates twice is not compiled.
        generator_term: maps generated and real images to a scalar that is added to the generator's
            loss, such as a reconstruction or perceptual loss.
        processes: that take the step together, each with its part of the batch; None for this one
            alone. The networks become those of rank 0, and what is measured is the mean. All need
            the same seed: each takes its part of the random numbers of the whole batch.

    Raises:
        ValueError: an option that is not one of those above, or a precision that the device only
            emulates (see :func:`ganfast.machine.native_precisions`).

    Source:
        Goodfellow et al. 2014, algorithm 1 and section 3, https://arxiv.org/abs/1406.2661

    Examples:
        >>> import torch
        >>> from ganfast.models import dcgan
        >>> from ganfast.nn import GANLoss
        >>> from ganfast.training import GANStep
        >>> gan = dcgan(image_size=16, channels=1, width=8)
        >>> adam_g, adam_d = (torch.optim.Adam(m.parameters(), 2e-4) for m in gan[:2])
        >>> step = GANStep(*gan[:2], adam_g, adam_d, GANLoss(), gan.latent, ema=0.999)
        >>> step(torch.zeros(4, 1, 16, 16)).d_loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizer_g: Optimizer,
        optimizer_d: Optimizer,
        loss: GANLoss,
        latent: Sequence[int] | Callable[[int], Tensor],
        *,
        paired: bool | None = None,
        precision: str = "fp32",
        channels_last: bool | None = None,
        capture: str = "auto",
        ema: float | None = None,
        penalty: float = 0.0,
        r1: float = 0.0,
        n_critic: int = 1,
        accumulate: int = 1,
        clip_norm: float | None = None,
        diff_augment: bool = False,
        compile: bool = False,
        generator_term: Callable[[Tensor, Tensor], Tensor] | None = None,
        processes: Processes | None = None,
    ) -> None:
        check_options(
            TrainingOptions, precision=precision, capture=capture, penalty=penalty, r1=r1,
            n_critic=n_critic, accumulate=accumulate, clip_norm=clip_norm,
        )  # fmt: skip
        self.device = next(generator.parameters()).device
        if precision == "auto":
            native = native_precisions(self.device)
            precision = next(p for p in native if p != "fp16" or not (penalty or r1))
        if precision == "fp16" and (penalty or r1):
            raise ValueError(
                "a penalty's gradients overflow in fp16: use precision='bf16' or 'fp32'"
            )
        require_native(precision, self.device)
        self.generator = generator
        self.discriminator = discriminator
        self.optimizer_g = optimizer_g
        self.optimizer_d = optimizer_d
        self.loss = loss
        self.latent = latent if callable(latent) else tuple(latent)
        self.precision = precision
        self.penalty = penalty
        self.r1 = r1
        self.n_critic = n_critic
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.diff_augment = diff_augment
        self.generator_term = generator_term
        self._generator: Any = generator
        self._discriminator: Any = discriminator
        if compile:
            self._generator, self._discriminator = (
                torch.compile(network, backend="ganfast", dynamic=False)
                for network in (generator, discriminator)
            )
        # torch.compile has no second derivatives.
        self._judge_real = discriminator if r1 else self._discriminator
        self.processes = processes or Processes()
        for network in (generator, discriminator):
            self.processes.follow_first([*network.parameters(), *network.buffers()])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        refused = None if paired else "not asked for"
        if paired is None:
            on_gpu = self.device.type == "cuda"
            refused = None if on_gpu else "it takes memory, and saves time on GPUs only"
        self.pairing = Pairing(discriminator, refused)
        self.average = None if ema is None else WeightAverage(generator, ema)
        self.layout = Layout(self, channels_last)
        self.captured = CapturedStep(self, capture)

    def __call__(self, real: Tensor, labels: Tensor | None = None) -> StepResult:
        """Take one step without waiting for the device.

        Args:
            real: images ``[N, C, H, W]``.
            labels: ``[N, ...]``, what both networks take as a second argument; None for networks
                that take none. Generated images have the labels of the real ones.

        Raises:
            ValueError: ``n_critic`` times ``accumulate`` does not divide N.
        """
        parts = self.n_critic * self.accumulate
        if len(real) % parts:
            raise ValueError(
                f"n_critic={self.n_critic} times accumulate={self.accumulate} must divide the "
                f"batch, got {len(real)} images"
            )
        batch = Batch(real, labels)
        part = next(batch.split(parts))
        self.layout.settle(batch)
        self.pairing.probe(part, self.processes)
        return self.captured(batch)

    def explain(self) -> str:
        """Say which options are in force, and why others are not."""
        return "\n".join(
            (
                f"precision: {self.precision}",
                f"layout: {self.layout.explain()}",
                f"paired: {self.pairing.explain()}",
                f"compiled: {'no' if self._generator is self.generator else 'yes'}",
                f"captured: {self.captured.explain()}",
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scaler and of the average, and the layout."""
        return {
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "channels_last": self.layout.channels_last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; load the optimizers' states as well.

        Raises:
            ValueError: only one of state and step has an average.
        """
        if (self.average is None) != (state["average"] is None):
            raise ValueError("only one of the state and this step has an average of weights")
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.layout.load(state.get("channels_last"))

    def update(self, batch: Batch) -> StepResult:
        """Take one step, uncaptured."""
        batch = batch.laid_out(self.layout.memory_format)
        for index, part in enumerate(batch.split(self.n_critic)):
            if index:
                self.scaler.update()
            last = index == self.n_critic - 1
            judged, fake = self._update_discriminator(part, reused=last and self.accumulate == 1)
        g_loss = self._update_generator(part, fake)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.generator)
        d_loss, real_score, fake_score = judged
        return StepResult(*self.processes.average((d_loss, g_loss, real_score, fake_score)))

    def _autocast(self) -> torch.autocast:
        # One context a pass: weights cast for one must not serve another after their update.
        enabled = self.precision != "fp32"
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=enabled)

    def _generate(self, batch: Batch) -> Tensor:
        with self._autocast():
            fake: Tensor = self._generator(self._draw(batch.real), *batch.condition)
        return fake

    def _draw(self, real: Tensor) -> Tensor:
        count = real.shape[0] * self.processes.count
        if callable(self.latent):
            return self.processes.part(self.latent(count))
        latent = torch.randn(count, *self.latent, device=real.device, dtype=real.dtype)
        return self.processes.part(latent)

    def _update_discriminator(self, batch: Batch, *, reused: bool) -> tuple[list[Tensor], Tensor]:
        """Return loss and scores, and generated images, with their graph if they are reused."""
        self.optimizer_d.zero_grad(set_to_none=True)
        measured = []
        for part in batch.split(self.accumulate):
            with torch.set_grad_enabled(reused):
                fake = self._generate(part)
            measured.append(self._judge(part, fake.detach()))
        self._follow_gradients(self.optimizer_d)
        return [_mean(values) for values in zip(*measured, strict=True)], fake

    def _augment(self, images: Tensor) -> Tensor:
        if not self.diff_augment:
            return images
        return augment(images, self.processes).contiguous(memory_format=self.layout.memory_format)

    def _judge(self, batch: Batch, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, fake = batch._replace(real=self._augment(batch.real)), self._augment(fake)
        if self.r1:
            batch = batch._replace(real=batch.real.detach().requires_grad_())
        judge = self._judge_paired if self.pairing.possible else self._judge_apart
        loss, real_score, fake_score = judge(batch, fake)
        if self.penalty:
            with self._autocast():
                penalty = self.penalty * gradient_penalty(
                    lambda images: self.discriminator(images, *batch.condition),
                    batch.real, fake, self.processes,
                )  # fmt: skip
            self._backward(penalty)
            loss = loss + penalty.detach()
        return loss, real_score, fake_score

    def _judge_paired(self, batch: Batch, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast():
            scores = self.pairing.judge(self._judge_real, batch, fake)
            loss, real_score, fake_score = self.loss.discriminator(scores, splits=2)
            if self.r1:
                of_real = [s[: len(batch.real)] for s in as_list(scores)]
                loss = loss + self.r1 / 2 * r1_penalty(of_real, batch.real)
        self._backward(loss)
        return loss.detach(), real_score, fake_score

    def _judge_apart(self, batch: Batch, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score in two passes, and free the graph of the real images before the second.

        A loss is the sum of a term for either kind: with detached scores, a term has no gradient.
        """
        with self._autocast():
            of_real = self._judge_real(batch.real, *batch.condition)
            fixed = detached(of_real)
            loss = self.loss.discriminator(of_real, fixed)[0]
            penalty = torch.zeros_like(loss)
            if self.r1:
                penalty = self.r1 / 2 * r1_penalty(of_real, batch.real)
        self._backward(loss + penalty)
        del of_real, loss
        with self._autocast():
            of_fake = self._discriminator(fake, *batch.condition)
            loss, real_score, fake_score = self.loss.discriminator(fixed, of_fake)
        self._backward(loss)
        return loss.detach() + penalty.detach(), real_score, fake_score

    def _update_generator(self, batch: Batch, fake: Tensor) -> Tensor:
        self.optimizer_g.zero_grad(set_to_none=True)
        # The discriminator's gradients are not needed.
        inputs = [p for p in self.generator.parameters() if p.requires_grad]
        losses = []
        for part in batch.split(self.accumulate):
            fake = fake if self.accumulate == 1 else self._generate(part)
            with self._autocast():
                scores = self._discriminator(self._augment(fake), *part.condition)
                loss = self.loss.generator(scores)
                if self.generator_term is not None:
                    loss = loss + self.generator_term(fake, part.real)
            self._backward(loss, inputs)
            losses.append(loss.detach())
        self._follow_gradients(self.optimizer_g)
        return _mean(losses)

    def _backward(self, loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
        loss = loss if self.accumulate == 1 else loss / self.accumulate
        self.scaler.scale(loss).backward(inputs=inputs)

    def _follow_gradients(self, optimizer: Optimizer) -> None:
        # Averaged before the scaler's check: an overflow in one process is then one in all.
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.processes.average_gradients(parameters)
        if self.clip_norm is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.scaler.step(optimizer)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(tuple(values)).mean()
