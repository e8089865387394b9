"""What fusion did to a model, and why it left the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ganfast.activations import ACTIVATIONS

__all__ = ["FusedLayer", "FusionReport"]


class FusedLayer(NamedTuple):
    """One pair that became one layer, by the name of its normalisation layer."""

    name: str
    channels: int
    activation: str | None
    negative_slope: float
    order: str


@dataclass(repr=False)
class FusionReport:
    """Say what was fused and what stays; prints as a table.

    Attributes:
        fused: the pairs that became one layer each.
        skipped: (name, reason) of each normalisation layer and loss that stays as it is.
        losses: (name, class) of the losses that became ganfast's.
    """

    fused: list[FusedLayer] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    losses: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("fused", layer.name, _describe(layer)) for layer in self.fused]
        rows += [("fused", name, loss) for name, loss in self.losses]
        rows += [("left", name, reason) for name, reason in self.skipped]
        if not rows:
            return (
                "Nothing to fuse: the model has no BatchNorm, InstanceNorm or BCE loss of torch's."
            )
        width = max(len(name) for _, name, _ in rows)
        lines = [f"{what:5}  {name:{width}}  {text}" for what, name, text in rows]
        counts = f"{_count(self.fused, 'pair')} and {_count(self.losses, 'loss', 'losses')} fused"
        return "\n".join([*lines, f"{counts}, {len(self.skipped)} left as is"])

    __repr__ = __str__


def _describe(layer: FusedLayer) -> str:
    slope = f"({layer.negative_slope:g})" if ACTIVATIONS[layer.activation].takes_slope else ""
    order = ", in front" if layer.order == "act_norm" else ""
    return f"{layer.channels} channels, {layer.activation}{slope}{order}"


def _count(things: Sequence[object], one: str, many: str = "") -> str:
    return f"{len(things)} {one if len(things) == 1 else many or one + 's'}"
