"""An average of a generator's weights over its updates."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Follow a generator with an exponential moving average of its weights and statistics.

    ``average = d * average + (1 - d) * weight`` after every update, with
    ``d = min(decay, (1 + t) / (10 + t))`` after t updates: a fixed decay would keep the untrained
    weights in a short run's average. Floating-point buffers (BatchNorm's running statistics) are
    averaged likewise, since the last generator's statistics are not those of the average.
    Integer buffers are copied.

    Args:
        generator: to follow.
        decay: at least 0 and below 1.

    Attributes:
        generator: a copy with the averaged weights, in evaluation mode.

    Raises:
        ValueError: ``decay`` is out of range.

    Source:
        Yazici et al. 2019, section 3, https://arxiv.org/abs/1806.04498; the correction of the start
        is that of ``tf.train.ExponentialMovingAverage``
    """

    def __init__(self, generator: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the average must be in [0, 1), got {decay}")
        self.decay = decay
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)
        # On the device, so that a captured step counts too.
        device = next(generator.parameters()).device
        self._updates = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, generator: nn.Module) -> None:
        """Take in the generator's present weights and buffers."""
        keep = ((1 + self._updates) / (10 + self._updates)).clamp_max(self.decay)
        self._updates += 1
        averages = [*self.generator.parameters(), *self.generator.buffers()]
        present = [*generator.parameters(), *generator.buffers()]
        pairs = list(zip(averages, present, strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        differences = torch._foreach_sub([new for _, new in floating], [old for old, _ in floating])
        torch._foreach_mul_(differences, (1 - keep).float())
        torch._foreach_add_([old for old, _ in floating], differences)
        for old, new in pairs:
            if not old.is_floating_point():
                old.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        return {"generator": self.generator.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.generator.load_state_dict(state["generator"])
        self._updates.copy_(state["updates"])
