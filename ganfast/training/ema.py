"""An average of a generator's weights over its updates."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Follow a generator's weights with an exponential moving average.

    ``average = decay * average + (1 - decay) * weight`` after every update; buffers, such as
    BatchNorm's running statistics, are copied as they are.

    Args:
        generator: to follow.
        decay: at least 0 and below 1.

    Attributes:
        generator: a copy with the averaged weights, in evaluation mode.

    Raises:
        ValueError: ``decay`` is out of range.

    Source:
        Yazici et al. 2019, section 3, https://arxiv.org/abs/1806.04498
    """

    def __init__(self, generator: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the average must be in [0, 1), got {decay}")
        self.decay = decay
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, generator: nn.Module) -> None:
        """Take in the generator's present weights and buffers."""
        torch._foreach_lerp_(
            list(self.generator.parameters()), list(generator.parameters()), 1 - self.decay
        )
        buffers = list(self.generator.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(generator.buffers()))
