"""Shuffled batches of images, in an order that a saved state continues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.training.data import ImageData
from ganfast.training.errors import DataError, counted
from ganfast.training.processes import Processes

__all__ = ["Batches", "as_bytes", "as_float"]

OTHER_DATA = (
    "the images are others than those it was trained on: give those, or go on with these by "
    "--allow-other-data (allow_other_data=True)"
)


def as_float(images: Tensor) -> Tensor:
    """Map bytes 0..255 to float32 in [-1, 1], the range of a generator's tanh."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= free // 2


def as_bytes(images: Tensor) -> Tensor:
    """Map images in [-1, 1] to the nearest bytes 0..255."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class Batches:
    """Serve shuffled batches ``[batch_size, C, H, W]`` in [-1, 1], epoch after epoch, without end.

    Every epoch has its own order, which depends on the seed alone, and leaves out the images that
    do not fill a last batch. Several processes with the same seed each get their part of every
    batch; the state is the same in all, and for any number of them.

    The images stay on the device, as bytes, if they take at most half of its free memory; else
    batches are copied to it while it computes earlier steps.

    Args:
        data: the images.
        batch_size: images a batch, of all processes together.
        seed: of the order.
        device: of the batches.
        processes: that share every batch; None for this one alone.

    Raises:
        DataError: if the batch size is not positive, the processes do not divide it, or there are
            fewer images than one batch.

    Examples:
        >>> from ganfast.training import Batches, load_images
        >>> batches = Batches(load_images("digits"), batch_size=64)
        >>> next(batches).shape, batches.batches_per_epoch
        (torch.Size([64, 1, 32, 32]), 28)
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        processes: Processes | None = None,
    ) -> None:
        self._processes = processes or Processes()
        if batch_size < 1:
            raise DataError(f"batch size must be positive, got {batch_size}")
        if batch_size > len(data):
            raise DataError(
                f"batch size {batch_size} is larger than {data.name}, which has "
                f"{counted(len(data), 'image')}"
            )
        if batch_size % self._processes.count:
            raise DataError(
                f"batch size {batch_size} is that of all processes together, and "
                f"{self._processes.count} processes do not divide it"
            )
        self.batch_size = batch_size
        self.batches_per_epoch = len(data) // batch_size
        self._device = torch.device(device)
        self._images = (
            data.images.to(self._device) if _fits(data.images, self._device) else data.images
        )
        self._fingerprint = data.fingerprint()
        self._rng = torch.Generator().manual_seed(seed)
        self._begin_epoch()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Tensor:
        if self._position == self.batches_per_epoch:
            self._begin_epoch()
        start = self._position * self.batch_size
        self._position += 1
        chosen = self._processes.part(self._order[start : start + self.batch_size])
        batch = self._images[chosen]
        if batch.device != self._device:  # from pinned memory the copy does not wait for the device
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return as_float(batch)

    def _begin_epoch(self) -> None:
        self._rng_at_epoch_start = self._rng.get_state()
        order = torch.randperm(len(self._images), generator=self._rng)
        self._order = order.to(self._images.device)
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the order, as tensors and numbers."""
        return {
            "rng": self._rng_at_epoch_start,
            "position": self._position,
            "images": len(self._images),
            "fingerprint": self._fingerprint,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any], *, allow_other_data: bool = False) -> None:
        """Continue from the position of ``state``; with other images, as far into an epoch.

        Raises:
            DataError: if it was taken with another batch size, or, unless that is allowed, with
                other images.
        """
        given = {
            "batch_size": self.batch_size,
            "images": len(self._images),
            "fingerprint": self._fingerprint,
        }
        for name, value in given.items():
            saved = state.get(name, value)  # earlier versions wrote no fingerprint
            if saved != value and not (allow_other_data and name != "batch_size"):
                advice = "" if name == "batch_size" else f"; {OTHER_DATA}"
                raise DataError(
                    f"cannot continue the saved order: it was drawn with {name} = {saved}, "
                    f"now {name} = {value}{advice}"
                )
        self._rng.set_state(state["rng"])
        self._begin_epoch()
        position = state["position"]
        if not 0 <= position <= self.batches_per_epoch and not allow_other_data:
            raise DataError(f"an epoch has {self.batches_per_epoch} batches, not {position}")
        self._position = max(0, min(position, self.batches_per_epoch))
