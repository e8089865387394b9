"""The networks of a finished or interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganfast import models
from ganfast.models import GAN
from ganfast.training.checkpoints import load_checkpoint, load_newest
from ganfast.training.errors import MALFORMED, CheckpointError, first_line

__all__ = ["load_run", "run_folder"]


def run_folder(path: str | Path) -> Path:
    """Return the folder of a run that is given by it or by a checkpoint in it."""
    path = Path(path)
    return path if path.is_dir() else path.parent


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
        # Without memory of their own: sizes are the checkpoint's, or they are refused.
        with torch.device("meta"):
            gan = models.build(model["name"], **model["options"])
        average = state["step_state"]["average"]
        weights = state["generator"] if average is None else average["generator"]
        for network, saved in (
            (gan.generator, weights),
            (gan.discriminator, state["discriminator"]),
        ):
            if _described(saved) != _described(network.state_dict()):
                raise ValueError("its weights have other names, shapes or dtypes")
            network.to_empty(device="cpu").load_state_dict(saved)
    except MALFORMED as error:
        raise CheckpointError(
            f"{path} does not say how its models are built: {first_line(error)}"
        ) from error
    for network in gan[:2]:
        network.eval().requires_grad_(False)
    return gan, state


def _described(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
