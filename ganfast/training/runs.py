"""The networks of a finished or interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ganfast import models
from ganfast.models import GAN
from ganfast.training.checkpoints import load_checkpoint, load_newest
from ganfast.training.errors import CheckpointError

__all__ = ["load_run"]


def load_run(folder: str | Path) -> tuple[GAN, dict[str, Any]]:
    """Build the networks of a run from its newest whole checkpoint, in evaluation mode.

    The generator has the average of weights, if the run kept one.

    Args:
        folder: that ``ganfast train --out`` wrote to; or one checkpoint in it.

    Returns:
        The networks, on the CPU, and the checkpoint.

    Raises:
        CheckpointError: there is no whole checkpoint, or none that says how its models are built.
    """
    path = Path(folder)
    if path.is_dir():
        path, state = load_newest(path)
    else:
        state = load_checkpoint(path)
    try:
        model = state["configuration"]["model"]
        gan = models.build(model["name"], **model["options"])
        average = state["step_state"]["average"]
        weights = state["generator"] if average is None else average["generator"]
        gan.generator.load_state_dict(weights)
        gan.discriminator.load_state_dict(state["discriminator"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not say how its models are built: {error}") from error
    for network in gan[:2]:
        network.eval().requires_grad_(False)
    return gan, state
