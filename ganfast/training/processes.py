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

__all__ = ["JoinedProcesses", "Launch", "Processes", "joined", "launch", "one_reporter"]

FAILED, REPORTED = "ganfast/failed", "ganfast/reported"
REPORT_S = 5.0
"""Seconds that a process that failed later waits for the first one's message before it ends."""


class Processes:
    """The processes that train together, as seen by one of them; this class: one process alone.

    Every process draws the random numbers of the whole batch and takes its ``part`` of them: any
    number of processes computes what one would, up to rounding.

    Attributes:
        rank: of this process; rank 0 alone writes files.
        count: the number of processes.

    Examples:
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
        """Return this process's part of a batch ``[count * N, ...]`` that every process has."""
        return batch

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over the processes, in place."""

    def average(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the mean over the processes of each of some scalars."""
        return values

    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 into tensors, in place."""

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process; all must call it."""
        return flag

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the block in rank 0 before the others, to fetch files for instance."""
        yield


class JoinedProcesses(Processes):
    """Processes of torch.distributed's default group.

    Gradients are averaged here, between backward and the optimiser's step, and not by
    DistributedDataParallel: it expects a gradient of every parameter after each forward pass, but
    the discriminator gets none in a generator's update; it does not support the
    ``torch.autograd.grad`` of a penalty; and it communicates during backward, whereas a captured
    step repeats fixed launches. The price: communication does not overlap with backward.

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
        # A tensor on the host, for gloo: no host-device sync.
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
    """Pass tensors through a collective as one flat buffer for each dtype and device.

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
    """The rank, local rank and world size that torchrun gives to a process."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def launch() -> Launch:
    """Return this process's place among those that torchrun started, or that of a single one."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started with this one, for the duration of the block.

    Tensors on a GPU are exchanged by NCCL, others by gloo. If one process fails, the others fail in
    their next collective.

    Args:
        device: of this process.

    Raises:
        ProcessError: another process failed or was lost.

    Examples:
        >>> import torch
        >>> from ganfast.training import joined
        >>> with joined(torch.device("cpu")) as processes:  # of two, each gets one half
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
        # Before the group ends, which would look like the failure to the others.
        if not _fails_first():
            raise ProcessError("another process failed") from error
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ProcessError("another process was killed or cannot be reached") from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def one_reporter() -> Iterator[bool]:
    """Give whether this process, which is about to fail, prints its error: the first one does.

    The others wait until it has, since torchrun ends all processes as soon as one has ended.
    """
    store = _store()
    if store is None:
        yield True
    elif _fails_first():
        yield True
        store.set(REPORTED, "")
    else:
        with suppress(dist.DistError):
            store.wait([REPORTED], timedelta(seconds=REPORT_S))
        yield False


@functools.cache
def _fails_first() -> bool:
    store = _store()
    return store is None or store.add(FAILED, 1) == 1


@functools.cache
def _store() -> Any:
    """Return the key-value store of torchrun's processes; None for a single process."""
    if launch().world_size == 1:
        return None
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://"))
    return store
