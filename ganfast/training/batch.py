"""What a step trains on, and the scores that a discriminator gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["Batch", "Scores", "as_list", "detached"]

Scores: TypeAlias = Tensor | Sequence[Tensor]
"""A tensor ``[N, ...]``; of a multi-scale discriminator, a list of them."""


class Batch(NamedTuple):
    """Real images ``[N, ...]`` and the labels ``[N, ...]`` of conditional networks, or None."""

    real: Tensor
    labels: Tensor | None = None

    @property
    def condition(self) -> tuple[Tensor, ...]:
        """What both networks take after latent vectors or images."""
        return () if self.labels is None else (self.labels,)

    def split(self, count: int) -> Iterator[Batch]:
        """Yield so many equal parts."""
        if self.labels is None:
            yield from (Batch(real) for real in self.real.chunk(count))
        else:
            pairs = zip(self.real.chunk(count), self.labels.chunk(count), strict=True)
            yield from (Batch(*pair) for pair in pairs)

    def first(self, count: int) -> Batch:
        """Return the first images and their labels, detached."""
        return self.map(lambda x: x.detach()[:count])

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch of what a function makes of images and labels."""
        return Batch(function(self.real), None if self.labels is None else function(self.labels))

    def laid_out(self, memory_format: torch.memory_format) -> Batch:
        """Return the batch with images ``[N, C, H, W]`` in a memory format."""
        if self.real.dim() != 4:
            return self
        return self._replace(real=self.real.contiguous(memory_format=memory_format))


def as_list(scores: Scores) -> list[Tensor]:
    """Return the scores of each scale."""
    return [scores] if isinstance(scores, Tensor) else list(scores)


def detached(scores: Scores) -> Scores:
    """Return scores as they are, without their graph."""
    return scores.detach() if isinstance(scores, Tensor) else [s.detach() for s in scores]
