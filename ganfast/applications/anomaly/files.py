"""A detector as one file: safetensors, which holds tensors and text and runs no code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ganfast.applications.anomaly.detector import Detector, DetectorOptions
from ganfast.models import dcgan
from ganfast.models.encoder import Encoder
from ganfast.training import CheckpointError
from ganfast.training.errors import first_line

__all__ = ["load_detector", "save_detector"]

FORMAT = "ganfast anomaly detector 1"


def save_detector(detector: Detector, path: Path) -> None:
    """Write networks, options and the normal images that scores compare with.

    The name appears once the file is whole.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    tensors = {"known": detector.known, "held_out": detector.held_out}
    for name, network in _networks(detector).items():
        tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "options": json.dumps(asdict(detector.options))}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(contiguous, metadata))
    partial.replace(path)


def load_detector(path: str | Path) -> Detector:
    """Read what ``save_detector`` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, or no detector.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a detector: {first_line(error)}"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no detector that 'ganfast anomaly' wrote")
    try:
        return _build(tensors, DetectorOptions(**json.loads(metadata["options"])))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error


def _build(tensors: dict[str, Tensor], options: DetectorOptions) -> Detector:
    sizes = (options.image_size, options.channels, options.width, options.latent)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        gan = dcgan(*sizes)
        has_encoder = any(name.startswith("encoder.") for name in tensors)
        encoder = Encoder(*sizes) if has_encoder else None
    detector = Detector(gan, encoder, tensors["known"], options, tensors["held_out"])
    if detector.known.shape[1:] != gan.image_shape or detector.known.dtype != torch.uint8:
        raise ValueError(f"its images are {list(detector.known.shape)}")
    for name, network in _networks(detector).items():
        prefix = f"{name}."
        network.load_state_dict(
            {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
        )
    return detector


def _networks(detector: Detector) -> dict[str, torch.nn.Module]:
    networks = {"generator": detector.gan.generator, "discriminator": detector.gan.discriminator}
    return networks | ({"encoder": detector.encoder} if detector.encoder else {})
