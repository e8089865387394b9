"""Fused, exact, drop-in layers for GANs in PyTorch."""

from ganfast import backend, functional, nn
from ganfast._version import __version__

__all__ = ["__version__", "backend", "functional", "nn"]
