"""Updates with a learning rate each, and one pass for several batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganfast.training.pairing import split, split_layers

__all__ = ["adam", "descend", "in_one_pass", "placed", "set_rate"]


def adam(network: nn.Module) -> Adam:
    """Build the optimizer of a network; each update sets its learning rate."""
    return Adam(network.parameters(), betas=(0.5, 0.999), fused=True)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, with its weights channels-last: faster, on CPUs too."""
    return network.to(device).to(memory_format=torch.channels_last)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set an optimizer's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(optimizer: Optimizer, loss: Tensor, rate: float) -> None:
    """Update the parameters of an optimizer, without gradients of other parameters."""
    set_rate(optimizer, rate)
    optimizer.zero_grad()
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()


def in_one_pass(
    network: nn.Module, function: Callable[[Tensor], Any], *batches: Tensor
) -> list[Any]:
    """Apply a network's function to batches of one size in one pass, with the numbers of several.

    ganfast's BatchNorm layers then normalise each batch with its own statistics (``splits``).

    Returns:
        What the function gives for each batch: a tensor, or a tuple of tensors, of the batches'
        dtype also under autocast.
    """
    with split(split_layers(network), len(batches)):
        found = function(torch.cat(batches))
    dtype, count = batches[0].dtype, len(batches)
    if isinstance(found, Tensor):
        return list(found.to(dtype).chunk(count))
    return list(zip(*(part.to(dtype).chunk(count) for part in found), strict=True))
