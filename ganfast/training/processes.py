"""Several processes that train one GAN together, each with its part of every batch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ganfast.training.errors import ProcessError

__all__ = ["JoinedProcesses", "Launch", "Processes", "joined", "launch", "one_speaker"]

FAILED, TOLD = "ganfast/failed", "ganfast/told"
SPEECH_S = 5.0
"""How long a process that failed second waits for the first one's message before it ends."""


class Processes:
    """What one process knows of those that train with it; of this class, one that is alone.

    Every process draws the same random numbers, those of the whole batch, and takes its ``part``
    of them, so that any number of processes computes what one would, up to rounding.

    Attributes:
        rank: the number of this process, from 0; process 0 alone writes files.
        count: how many processes there are.

    Example:
        >>> from ganfast.training import Processes
        >>> Processes().count, Processes().leads
        (1, True)
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """Return this process's part of what all have the whole of, ``[count * N, ...]``."""
        return batch

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over the processes, in place."""

    def average(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the mean over the processes of each of some scalars."""
        return values

    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that process 0 has, in place."""

    def any(self, flag: bool) -> bool:
        """Say whether a flag is set in any process, once all have asked."""
        return flag

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Have process 0 do something before the others do, such as fetching files."""
        yield


class JoinedProcesses(Processes):
    """Processes of torch.distributed's default group.

    Gradients are averaged here, between backward and the optimiser's step, and not by
    DistributedDataParallel: that expects gradients of every parameter after each forward pass, but
    in a generator's update the discriminator gets none; it does not go with the
    ``torch.autograd.grad`` of a penalty; and it communicates as backward proceeds, whereas a step
    that is captured repeats fixed launches. In return, nothing is sent during backward.

    Source:
        The same choice in training/training_loop.py of https://github.com/NVlabs/stylegan3
    """

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def part(self, batch: Tensor) -> Tensor:
        size = len(batch) // self.count
        return batch[self.rank * size : (self.rank + 1) * size]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        _exchange([p.grad for p in parameters if p.grad is not None], self._average)

    def average(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        stacked = torch.stack([value.detach() for value in values])
        self._average(stacked)
        return stacked.unbind()

    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        _exchange([t.detach() for t in tensors], lambda flat: dist.broadcast(flat, 0))

    def any(self, flag: bool) -> bool:
        # A tensor on the host, for gloo: no device is waited for.
        votes = torch.tensor(float(flag), device="cpu")
        dist.all_reduce(votes)
        return bool(votes)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        if not self.leads:
            self.any(False)
        yield
        if self.leads:
            self.any(False)

    def _average(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor)
        tensor.div_(self.count)


def _exchange(tensors: list[Tensor], collective: Callable[[Tensor], Any]) -> None:
    """Hand tensors to a collective as one flat buffer for each dtype and device, and back.

    They keep their memory and layout, which may differ from process to process.
    """
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        collective(flat)
        parts = flat.split([tensor.numel() for tensor in alike])
        values = [part.view(t.shape) for part, t in zip(parts, alike, strict=True)]
        torch._foreach_copy_(alike, values)


class Launch(NamedTuple):
    """What torchrun says to a process that it starts: its number, that on its machine, and all."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def launch() -> Launch:
    """Return this process's place among those that torchrun started; without it, it is alone."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started with this one, as long as the block lasts.

    Tensors on a GPU are exchanged by NCCL, others by gloo. Where one process fails, the others
    lose it in their next exchange and fail as well.

    Args:
        device: this process's own.

    Raises:
        ProcessError: another process failed or was lost.

    Example:
        >>> import torch
        >>> from ganfast.training import joined
        >>> with joined(torch.device("cpu")) as processes:  # the half of it, where there are two
        ...     processes.part(torch.zeros(8, 3)).shape
        torch.Size([8, 3])
    """
    if launch().world_size == 1:
        yield Processes()
        return
    backend, place = "gloo", launch()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"  # flags stay on the host
    dist.init_process_group(
        backend,
        store=_store(),
        rank=place.rank,
        world_size=place.world_size,
    )
    try:
        yield JoinedProcesses()
    except Exception as error:
        # Asked for before the group ends: the others must not take this end for the cause.
        if not _fails_first():
            raise ProcessError("another process failed") from error
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ProcessError("another process was killed or cannot be reached") from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def one_speaker() -> Iterator[bool]:
    """Say whether this process, which is about to fail, tells the user why: the first does.

    The others wait until it has, since torchrun ends all processes as soon as one has ended.
    """
    store = _store()
    if store is None:
        yield True
    elif _fails_first():
        yield True
        store.set(TOLD, "")
    else:
        with suppress(dist.DistError):
            store.wait([TOLD], timedelta(seconds=SPEECH_S))
        yield False


@functools.cache
def _fails_first() -> bool:
    store = _store()
    return store is None or store.add(FAILED, 1) == 1


@functools.cache
def _store() -> Any:
    """Return the table of keys that torchrun's processes share; None for a process alone."""
    if launch().world_size == 1:
        return None
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://"))
    return store
