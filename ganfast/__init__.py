"""Fused, exact, drop-in layers for GANs in PyTorch."""

from ganfast import backend, functional, nn
from ganfast._version import __version__
from ganfast.synchronisation import convert_sync_batchnorm

__all__ = ["__version__", "backend", "convert_sync_batchnorm", "functional", "nn"]
