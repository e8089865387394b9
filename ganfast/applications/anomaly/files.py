"""Detectors as files in the format of checkpoints: reading one runs no code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ganfast.applications.anomaly.detector import Detector, DetectorOptions
from ganfast.models import dcgan
from ganfast.models.encoder import Encoder
from ganfast.training import CheckpointError, load_checkpoint
from ganfast.training.checkpoints import write_checkpoint
from ganfast.training.errors import first_line

__all__ = ["load_detector", "save_detector"]


def save_detector(detector: Detector, path: Path) -> None:
    """Write networks, options and the normal images that scores compare with.

    The name appears once the file is whole.

    Args:
        detector: to write.
        path: ending in ``.safetensors``.

    Raises:
        OSError: it cannot be written.
    """
    encoder = detector.encoder
    state = {
        "detector": asdict(detector.options),
        "generator": detector.gan.generator.state_dict(),
        "discriminator": detector.gan.discriminator.state_dict(),
        "encoder": None if encoder is None else encoder.state_dict(),
        "known": detector.known,
        "held_out": detector.held_out,
    }
    write_checkpoint(path, detector.options.steps, state)


def load_detector(path: str | Path, device: torch.device | str = "cpu") -> Detector:
    """Read what ``save_detector`` wrote, for a device to score on.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or no detector.
    """
    state = load_checkpoint(Path(path))
    if "detector" not in state:
        raise CheckpointError(f"{path} is no detector that 'ganfast anomaly' wrote")
    try:
        return _build(state, device)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this version: {first_line(error)}") from error


def _build(state: dict[str, Any], device: torch.device | str) -> Detector:
    options = DetectorOptions(**state["detector"])
    sizes = (options.image_size, options.channels, options.width, options.latent)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        gan = dcgan(*sizes)
        encoder = None if state["encoder"] is None else Encoder(*sizes)
    gan.generator.load_state_dict(state["generator"])
    gan.discriminator.load_state_dict(state["discriminator"])
    if encoder is not None:
        encoder.load_state_dict(state["encoder"])
    for network in (*gan[:2], encoder):
        if network is not None:
            network.to(device)
    return Detector(gan, encoder, state["known"], options, state["held_out"])
