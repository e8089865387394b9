"""The memory layout of a step's networks and images: the one asked for, or the faster one."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ganfast.training.batch import Batch

if TYPE_CHECKING:
    from ganfast.training.step import GANStep

__all__ = ["Layout"]

ROUNDS = 4
"""Steps taken in either layout; the first compiles kernels."""
BUDGET_S = 1.5
"""No further round begins after so long."""
GAIN = 0.97
"""Share of the contiguous step's time that a channels-last one must stay below to be taken."""

Times = dict[bool, float]

_measured: dict[Any, Times] = {}
"""Seconds of a step, contiguous and channels-last, by all that a step's time depends on."""


class Layout:
    """Lay a step's networks, averages and optimizer states out alike.

    On a CPU the faster layout is found by trial, before the first step: copies of the networks take
    a few steps in either layout, with learning rate 0 and random numbers of their own. On a GPU
    channels-last is taken for half precision.

    Args:
        step: whose layout this is.
        channels_last: None to choose.
    """

    def __init__(self, step: GANStep, channels_last: bool | None) -> None:
        self._step = step
        self._given = channels_last is not None
        self._why = "as asked for" if self._given else ""
        self._applied = False
        self.channels_last = channels_last

    @property
    def memory_format(self) -> torch.memory_format:
        """That of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def settle(self, batch: Batch) -> None:
        """Choose, if there is a choice, and lay everything out, before the first step."""
        if self.channels_last is None:
            self.channels_last = self._choose(batch)
        if not self._applied:
            self._apply()
            self._applied = True

    def explain(self) -> str:
        """Say which layout it is, and why."""
        if self.channels_last is None:
            return "to be decided on the first batch"
        return f"{'channels-last' if self.channels_last else 'contiguous'}, {self._why}"

    def load(self, channels_last: bool | None) -> None:
        """Take the layout that a checkpoint's run had, unless one was asked for.

        Raises:
            ValueError: the checkpoint's is no layout.
        """
        if not isinstance(channels_last, bool | None):
            raise ValueError(f"channels_last cannot be {channels_last!r}")
        if channels_last is not None and not self._given:
            self.channels_last, self._why = channels_last, "as in the checkpoint"
        self._applied = False  # optimizer states may have come in another layout

    def _choose(self, batch: Batch) -> bool:
        step = self._step
        convolves = any(p.dim() == 4 for p in _parameters(step))
        if step.device.type != "cpu" or not convolves:
            self._why = "the usual one for this device, precision and network"
            return convolves and step.precision != "fp32"
        if callable(step.latent) or step.processes.count > 1:
            self._why = "not measured: " + (
                "the latent vectors come from a function"
                if callable(step.latent)
                else "several processes train together"
            )
            return False
        try:
            times = _times(step, batch)
        except Exception as error:  # networks may refuse to be copied in any way
            self._why = f"not measured: {type(error).__name__}: {error}".partition("\n")[0]
            return False
        self._why = (
            f"measured: {1e3 * times[False]:.3g} ms contiguous, "
            f"{1e3 * times[True]:.3g} ms channels-last"
        )
        return times[True] < GAIN * times[False]

    def _apply(self) -> None:
        step, average = self._step, self._step.average
        networks = [step.generator, step.discriminator]
        for network in networks if average is None else [*networks, average.generator]:
            _lay_out(network, self.memory_format)
        for optimizer in (step.optimizer_g, step.optimizer_d):
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        # Fused kernels walk states in the order of the parameter's memory.
                        state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Leave networks alone that are as they should be: moving them replaces their tensors."""
    tensors = [t for t in (*network.parameters(), *network.buffers()) if t.dim() == 4]
    if not all(t.is_contiguous(memory_format=memory_format) for t in tensors):
        network.to(memory_format=memory_format)


def _times(step: GANStep, batch: Batch) -> Times:
    shapes = [p.shape for p in (*_parameters(step), batch.real, *batch.condition)]
    kind = (step.latent, step.precision, bool(step.penalty), bool(step.r1))
    key = (*shapes, batch.real.dtype, *kind, step.n_critic, step.accumulate, step.diff_augment)
    key = (*key, torch.get_num_threads())
    if key not in _measured:
        with torch.random.fork_rng([]):
            _measured[key] = _try(step, batch)
    return _measured[key]


def _try(step: GANStep, batch: Batch) -> Times:
    twins = {channels_last: _twin(step, batch, channels_last) for channels_last in (False, True)}
    best: Times = {}
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        for channels_last, twin in twins.items():
            start = time.perf_counter()
            twin.update(batch)
            elapsed = time.perf_counter() - start
            for optimizer in (twin.optimizer_g, twin.optimizer_d):
                optimizer.zero_grad()
            best[channels_last] = min(elapsed, best.get(channels_last, elapsed))
        if time.perf_counter() - begin > BUDGET_S:
            break
    for twin in twins.values():
        del twin.layout, twin.captured  # they refer to the twin, whose memory a cycle would keep
    return best


def _twin(step: GANStep, batch: Batch, channels_last: bool) -> GANStep:
    """Return a step of the same kind on copies of the networks, which changes no weight."""
    generator, discriminator = copy.deepcopy((step.generator, step.discriminator))
    still_g, still_d = (SGD(network.parameters(), 0.0) for network in (generator, discriminator))
    twin = type(step)(
        generator, discriminator, still_g, still_d, step.loss, step.latent,
        precision=step.precision, channels_last=channels_last, capture="never",
        penalty=step.penalty, r1=step.r1, n_critic=step.n_critic, accumulate=step.accumulate,
        diff_augment=step.diff_augment,
    )  # fmt: skip
    twin.layout.settle(batch)
    return twin


def _parameters(step: GANStep) -> list[nn.Parameter]:
    return [*step.generator.parameters(), *step.discriminator.parameters()]
