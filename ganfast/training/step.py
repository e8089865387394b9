"""One training step of a GAN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganfast.nn import GANLoss
from ganfast.training.capture import CapturedStep
from ganfast.training.ema import WeightAverage
from ganfast.training.pairing import Pairing
from ganfast.training.penalties import gradient_penalty, r1_penalty
from ganfast.training.processes import Processes

__all__ = ["PRECISIONS", "GANStep", "StepResult"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAPTURES = ("auto", "always", "never")


class StepResult(NamedTuple):
    """What one step measured: scalars on the device, so that reading them is the caller's choice.

    ``real_score`` and ``fake_score`` are the mean scores of real and generated images before the
    discriminator's update: probabilities to be real for the loss "bce". ``d_loss`` contains the
    penalty, where there is one.
    """

    d_loss: Tensor
    g_loss: Tensor
    real_score: Tensor
    fake_score: Tensor


class GANStep:
    """Update the discriminator, then the generator, once for a batch of real images.

    The generator is scored by the updated discriminator. With ``precision="fp32"`` this follows
    https://github.com/pytorch/examples/blob/main/dcgan/main.py number for number, whatever the
    other options.

    Args:
        generator: maps latent vectors ``[N, *latent]`` to images.
        discriminator: maps images to scores, batch first.
        optimizer_g: of the generator's parameters.
        optimizer_d: of the discriminator's parameters.
        loss: both networks' losses.
        latent: shape of one latent vector, drawn from N(0, 1); or a function that takes the batch
            size and returns the batch of them.
        paired: whether the discriminator sees real and generated images in one batch, each half
            normalised with its own statistics: the numbers of two passes with half the launches,
            and both halves in memory at once. Where a layer does not allow it, two passes are made
            and :meth:`explain` says why. None for where launches count: on GPUs.
        precision: "fp32"; "bf16" or "fp16" for what torch.autocast computes in these dtypes, with
            scaled losses for "fp16". Parameters stay as they are.
        channels_last: whether weights and images are laid out channels-last; None for where that
            is faster: on GPUs with "bf16" and "fp16".
        capture: "auto" replays the whole step as one CUDA graph where that is possible; "always"
            raises where it is not; "never".
        ema: decay of an average of the generator's weights, a :class:`WeightAverage` kept in
            ``self.average``; None for none.
        penalty: weight of the gradient penalty (Gulrajani et al. 2017, equation 3), 0 for none.
        r1: weight gamma of the penalty on the gradient at real images (Mescheder et al. 2018,
            equation 9), 0 for none.
        processes: that take the step together, each with its part of the batch; None for this one
            alone. The networks become those of process 0, and what is measured is the mean. Seed
            all alike: each takes its part of the random numbers of the whole batch.

    Raises:
        ValueError: an option that is not one of those above.

    Source:
        Goodfellow et al. 2014, algorithm 1 and section 3, https://arxiv.org/abs/1406.2661

    Example:
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
        processes: Processes | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if capture not in CAPTURES:
            raise ValueError(f"capture must be one of {', '.join(CAPTURES)}, got {capture!r}")
        if penalty < 0 or r1 < 0:
            raise ValueError(f"penalties must not be negative, got penalty={penalty}, r1={r1}")
        if precision == "fp16" and (penalty or r1):
            raise ValueError("a penalty's gradients overflow in fp16: use precision='bf16'")
        self.generator = generator
        self.discriminator = discriminator
        self.optimizer_g = optimizer_g
        self.optimizer_d = optimizer_d
        self.loss = loss
        self.latent = latent if callable(latent) else tuple(latent)
        self.precision = precision
        self.penalty = penalty
        self.r1 = r1
        self.processes = processes or Processes()
        self.device = next(generator.parameters()).device
        on_gpu = self.device.type == "cuda"
        if channels_last is None:
            channels_last = on_gpu and precision != "fp32"
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for network in (generator, discriminator):
            if channels_last:
                network.to(memory_format=torch.channels_last)
            self.processes.follow_first([*network.parameters(), *network.buffers()])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        refused = None if paired else "not asked for"
        if paired is None:
            refused = None if on_gpu else "it takes memory, and saves time on GPUs only"
        self.pairing = Pairing(discriminator, refused)
        self.average = None if ema is None else WeightAverage(generator, ema)
        self.captured = CapturedStep(self, capture)

    def __call__(self, real: Tensor) -> StepResult:
        """Take one step on real images ``[N, C, H, W]`` without waiting for the device."""
        self.pairing.probe(real, self.processes)
        return self.captured(real)

    def explain(self) -> str:
        """Say which options are in force, and why not those asked for."""
        layout = "channels-last" if self.memory_format == torch.channels_last else "contiguous"
        return "\n".join(
            (
                f"precision: {self.precision}, {layout}",
                f"paired: {self.pairing.explain()}",
                f"captured: {self.captured.explain()}",
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the step itself remembers: the scaler and the average."""
        average = None if self.average is None else self.average.state_dict()
        return {"scaler": self.scaler.state_dict(), "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: one of the two has an average and the other has not.
        """
        if (self.average is None) != (state["average"] is None):
            raise ValueError("the state has an average of weights and this step not, or conversely")
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def update(self, real: Tensor) -> StepResult:
        """Take one step, uncaptured."""
        real = real.contiguous(memory_format=self.memory_format) if real.dim() == 4 else real
        with self._autocast():
            fake = self.generator(self._draw(real))
        d_loss, real_score, fake_score = self._update_discriminator(real, fake.detach())
        g_loss = self._update_generator(fake)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.generator)
        return StepResult(*self.processes.average((d_loss, g_loss, real_score, fake_score)))

    def _autocast(self) -> torch.autocast:
        # One context a pass: weights cast for one must not serve another after their update.
        enabled = self.precision != "fp32"
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=enabled)

    def _draw(self, real: Tensor) -> Tensor:
        count = real.shape[0] * self.processes.count
        if callable(self.latent):
            return self.processes.part(self.latent(count))
        latent = torch.randn(count, *self.latent, device=real.device, dtype=real.dtype)
        return self.processes.part(latent)

    def _update_discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.optimizer_d.zero_grad(set_to_none=True)
        if self.r1:
            real = real.detach().requires_grad_()
        judge = self._judge_paired if self.pairing.possible else self._judge_apart
        loss, real_score, fake_score = judge(real, fake)
        if self.penalty:
            with self._autocast():
                penalty = gradient_penalty(self.discriminator, real, fake, self.processes)
                penalty = self.penalty * penalty
            self._backward(penalty)
            loss = loss + penalty.detach()
        self._follow_gradients(self.optimizer_d)
        return loss, real_score, fake_score

    def _judge_paired(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast():
            scores = self.pairing.judge(real, fake)
            loss, real_score, fake_score = self.loss.discriminator(scores, splits=2)
            if self.r1:
                loss = loss + self.r1 / 2 * r1_penalty(scores[: len(real)], real)
        self._backward(loss)
        return loss.detach(), real_score, fake_score

    def _judge_apart(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let go of what was kept of the real images before the generated ones are judged.

        A loss is a sum of a term of either kind: held fixed, the other one adds no gradient.
        """
        with self._autocast():
            of_real = self.discriminator(real)
            fixed = of_real.detach()
            loss = self.loss.discriminator(of_real, fixed)[0]
            penalty = torch.zeros_like(loss)
            if self.r1:
                penalty = self.r1 / 2 * r1_penalty(of_real, real)
        self._backward(loss + penalty)
        del of_real, loss
        with self._autocast():
            scored = self.loss.discriminator(fixed, self.discriminator(fake))
            loss, real_score, fake_score = scored
        self._backward(loss)
        return loss.detach() + penalty.detach(), real_score, fake_score

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _update_generator(self, fake: Tensor) -> Tensor:
        self.optimizer_g.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.loss.generator(self.discriminator(fake))
        # The discriminator's own gradients would be thrown away: ask only for the generator's.
        inputs = [p for p in self.generator.parameters() if p.requires_grad]
        self.scaler.scale(loss).backward(inputs=inputs)
        self._follow_gradients(self.optimizer_g)
        return loss.detach()

    def _follow_gradients(self, optimizer: Optimizer) -> None:
        # Averaged before the scaler looks: what overflows in one process does so in all.
        groups = optimizer.param_groups
        self.processes.average_gradients(p for group in groups for p in group["params"])
        self.scaler.step(optimizer)
