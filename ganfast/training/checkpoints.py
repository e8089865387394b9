"""Checkpoints that are either whole or absent, and the search for the newest whole one."""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ganfast.training.errors import CheckpointError, first_line

__all__ = ["load_checkpoint", "load_newest", "save_checkpoint"]

FORMAT = 2  # raised whenever older code could not read what newer code writes
KEPT = 2  # a spare one, should the newest be damaged
FILE_NAME = re.compile(r"checkpoint-(\d{8,})\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``checkpoint-<step>.pt``, keep it and the one before, and return its path.

    The name appears once the bytes are on disk: an interrupted write leaves the earlier
    checkpoints as they were.

    Raises:
        OSError: if it cannot be written.
    """
    path = folder / f"checkpoint-{step:08d}.pt"
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "step": step, **state}, buffer)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    for old in [p for p in _newest_first(folder) if _step(p) <= step][KEPT:]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU.

    Raises:
        CheckpointError: if it is missing, truncated, altered, or no checkpoint of this package.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no ganfast training checkpoint of format {FORMAT}")
    return state


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
        (p for p in folder.glob("checkpoint-*.pt") if FILE_NAME.fullmatch(p.name)),
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
