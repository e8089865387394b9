"""A whole training step as one CUDA graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ganfast.training.batch import Batch
    from ganfast.training.step import GANStep, StepResult

__all__ = ["CapturedStep"]

WARM_UP_STEPS = 3
"""Steps taken before a capture, so that kernels, states and memory pools exist."""


class CapturedStep:
    """Take a GANStep's steps, replayed from a CUDA graph if that is possible.

    The warm-up steps of every shape of batch train the networks too. Learning rates become tensors
    on the device, so that a scheduler, or a number put into ``optimizer.param_groups``, reaches
    the replayed step. What a replay returns is copied.

    Args:
        step: whose ``update`` is captured.
        mode: "auto", "always" or "never".
    """

    def __init__(self, step: GANStep, mode: str) -> None:
        self._step = step
        self._reason = "not asked for" if mode == "never" else self._why_not()
        if mode == "always" and self._reason:
            raise ValueError(f"the step cannot be captured: {self._reason}")
        self._optimizers = (step.optimizer_g, step.optimizer_d)
        self._taken = 0
        self._signature: tuple[Any, ...] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rates: list[Tensor] = []
        if not self._reason:
            self._make_capturable()

    def __call__(self, batch: Batch) -> StepResult:
        """Take one step."""
        if self._reason:
            return self._step.update(batch)
        tensors = (batch.real, *batch.condition)
        kinds = tuple((x.shape, x.dtype) for x in tensors)
        signature = (kinds, self._step.generator.training)
        if signature != self._signature:
            self._signature, self._graph, self._taken = signature, None, 0
        self._set_rates()
        if self._graph is None and self._taken < WARM_UP_STEPS:
            self._taken += 1
            return self._warm_up(batch)
        if self._graph is None:
            self._capture(batch)
        assert self._graph is not None
        for ours, given in zip(self._tensors, tensors, strict=True):
            ours.copy_(given)
        self._graph.replay()
        return type(self._result)(*(value.clone() for value in self._result))

    def explain(self) -> str:
        """Say whether steps are captured, and why not."""
        return f"no: {self._reason}" if self._reason else "yes, after the first steps of each shape"

    def _why_not(self) -> str:
        step = self._step
        if step.device.type != "cuda":
            return f"the networks are on the {step.device.type}, and only CUDA has graphs"
        if step.precision == "fp16":
            return "the scaler of fp16 reads its factor on the host"
        if callable(step.latent):
            return "the latent vectors come from a function, which a replay would not call"
        for optimizer in (step.optimizer_g, step.optimizer_d):
            if "capturable" not in optimizer.param_groups[0]:
                return f"{type(optimizer).__name__} has no capturable form"
        return ""

    def _make_capturable(self) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
                rate = torch.as_tensor(group["lr"], dtype=torch.float32, device=self._step.device)
                group["lr"] = rate
                self._rates.append(rate)
            for state in optimizer.state.values():  # of steps taken before
                if torch.is_tensor(state.get("step")):
                    state["step"] = state["step"].to(self._step.device)

    def _set_rates(self) -> None:
        """Move learning rates that were replaced into the tensors that the graph reads."""
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        for group, rate in zip(groups, self._rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate

    def _warm_up(self, batch: Batch) -> StepResult:
        stream = torch.cuda.Stream(self._step.device)
        stream.wait_stream(torch.cuda.current_stream(self._step.device))
        with torch.cuda.stream(stream):
            result = self._step.update(batch)
        torch.cuda.current_stream(self._step.device).wait_stream(stream)
        return result

    def _capture(self, batch: Batch) -> None:
        batch = batch.map(torch.clone)
        self._tensors = (batch.real, *batch.condition)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)  # gradients then live in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        # With several processes, a thread of NCCL queries events meanwhile.
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        mode = "thread_local" if several else "global"
        with torch.cuda.graph(graph, capture_error_mode=mode):
            self._result = self._step.update(batch)
        self._graph = graph
