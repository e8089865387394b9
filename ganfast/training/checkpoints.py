"""Atomic writing of checkpoints, and the search for the newest one that is whole.

A checkpoint is one safetensors file: weights, optimizer states and random states as tensors under
dotted names, everything else as JSON in its metadata, and a digest of both. Reading one never runs
code, and any safetensors reader finds the weights below ``generator.`` and ``discriminator.``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganfast.training.errors import CheckpointError, first_line

__all__ = ["SUFFIX", "load_checkpoint", "load_newest", "save_checkpoint", "write_checkpoint"]

FORMAT = 3  # raised whenever older code could not read what newer code writes
KEPT = 2  # a spare one, should the newest be damaged
SUFFIX = ".safetensors"
FILE_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = KEPT) -> Path:
    """Write ``checkpoint-<step>.safetensors``, keep the last ``keep``, and return its path.

    Raises:
        OSError: if it cannot be written.
    """
    path = folder / f"checkpoint-{step:08d}{SUFFIX}"
    write_checkpoint(path, step, state)
    for old in [p for p in _newest_first(folder) if _step(p) <= step][keep:]:
        old.unlink()
    return path


def write_checkpoint(path: Path, step: int, state: dict[str, Any]) -> None:
    """Write one checkpoint under a name of its own.

    The name appears once the bytes are on disk: an interrupted write leaves what was there.

    Args:
        path: of the file.
        step: that the state was taken at.
        state: dicts, lists and tuples of tensors, numbers, strings and None.

    Raises:
        OSError: if it cannot be written.
        TypeError: if the state holds something else.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_apart({"step": step, **state}, "", tensors))
    metadata = {
        "ganfast": str(FORMAT),
        "state": structure,
        "sha256": _digest(structure, tensors),
    }
    content = save(tensors, metadata)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU.

    Raises:
        CheckpointError: if it is missing, truncated, altered, or no checkpoint of this package.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if metadata.get("ganfast") != str(FORMAT):
        raise CheckpointError(f"{path} is no ganfast training checkpoint of format {FORMAT}")
    structure = metadata.get("state", "")
    if _digest(structure, tensors) != metadata.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    try:
        state: dict[str, Any] = _put_together(json.loads(structure), tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no ganfast training checkpoint: {error}") from error
    return state


def _take_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors out of a structure, and return the rest as JSON holds it."""
    if isinstance(value, Tensor):
        if name in tensors:
            raise TypeError(f"two tensors of the state have the name {name}")
        tensors[name] = value.detach().cpu().contiguous()
        # An optimizer's fused kernel walks its states in the order of the parameter's memory.
        return {"tensor": name, "stride": None if value.is_contiguous() else value.stride()}
    if isinstance(value, dict):
        pairs = [(key, _take_apart(v, _join(name, key), tensors)) for key, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_take_apart(v, _join(name, i), tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo ``_take_apart``."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor, stride = tensors[value["tensor"]], value["stride"]
        if stride is None:
            return tensor
        return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
    if "dict" in value:
        return {key: _put_together(v, tensors) for key, v in value["dict"]}
    if "tuple" in value:
        return tuple(_put_together(v, tensors) for v in value["tuple"])
    return [_put_together(v, tensors) for v in value["list"]]


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _digest(structure: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(structure.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the newest whole checkpoint in a folder, warning of every damaged newer one.

    Raises:
        CheckpointError: if the folder holds no checkpoint, or none that is whole.
    """
    damage: list[str] = []
    for path in _newest_first(folder):
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for message in damage:
            warnings.warn(f"skipped a checkpoint: {message}", stacklevel=2)
        return path, state
    if damage:
        raise CheckpointError(f"{folder} holds no whole checkpoint: {'; '.join(damage)}")
    raise CheckpointError(f"{folder} holds no checkpoint to resume from")


def _newest_first(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.glob(f"checkpoint-*{SUFFIX}") if FILE_NAME.fullmatch(p.name)),
        key=_step,
        reverse=True,
    )


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint-"))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
