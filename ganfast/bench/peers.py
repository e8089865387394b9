"""The peers that ganfast is compared with, and why one may be missing."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from torch import nn

from ganfast import backend
from ganfast.bench.case import BACKENDS
from ganfast.machine import native_precisions

__all__ = ["BF16", "PEERS", "layer", "why_missing"]

BF16 = ("bf16", "all-bf16")
"""Peers that compute in bfloat16."""

PEERS = {
    "eager": "torch's own layers",
    "compile": "torch's own layers, compiled by torch.compile",
    "bf16": "the plain loop under torch.autocast, channels-last (step only)",
    "layers": "the plain loop with ganfast's layers (step only)",
    "losses": "ganfast's step, unpaired (step only)",
    "paired": "ganfast's step, paired, with torch's default Adam (step only)",
    "compiled": "ganfast's step with compile=True (step only)",
    "all-bf16": "ganfast's step in bf16, channels-last (step only)",
    "native": "ganfast with its C++/CUDA kernels",
    "triton": "ganfast with its Triton kernels",
    "timm": "timm.layers.BatchNormAct2d",
    "inplace_abn": "inplace_abn.InPlaceABN",
}


def why_missing(name: str, suite_peers: tuple[str, ...], device: str) -> str:
    """Return why a peer cannot be measured, or "" if it can."""
    if name not in suite_peers:
        return "has no counterpart in this suite"
    if name in BF16 and "bf16" not in native_precisions(device):
        return f"{device} has no bfloat16 instructions here, and emulates them many times slower"
    if name in BACKENDS:
        if name not in backend.available(device):
            return f"ganfast has no {name} kernels on {device} here; ganfast info says why"
    elif name in ("timm", "inplace_abn"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a package built for another torch may fail in any way
            return f"{str(error).partition(chr(10))[0]} (pip install {name})"
    return ""


def layer(name: str, pair: Any, ours: nn.Module) -> Any:
    """Return a peer's BatchNorm2d and LeakyReLU(0.2), with ``pair``'s own initial parameters.

    Args:
        name: a key of ``PEERS``.
        pair: torch's two layers, an nn.Sequential.
        ours: ganfast's one.
    """
    if name in ("ganfast", *BACKENDS):
        return ours
    if name == "eager":
        return pair
    if name == "compile":
        torch._dynamo.reset()  # after eight shapes it would run the ninth uncompiled
        return torch.compile(copy.deepcopy(pair), dynamic=False)
    channels, slope, device = pair[0].num_features, pair[1].negative_slope, pair[0].weight.device
    if name == "timm":
        layers = importlib.import_module("timm.layers")
        arguments = {"act_layer": nn.LeakyReLU, "act_kwargs": {"negative_slope": slope}}
        return layers.BatchNormAct2d(channels, **arguments, device=device)
    abn = importlib.import_module("inplace_abn")
    return _Copied(
        abn.InPlaceABN(channels, activation="leaky_relu", activation_param=slope).to(device)
    )


class _Copied(nn.Module):
    """Give a layer that overwrites its input a copy, as an earlier layer would write it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x.clone())
