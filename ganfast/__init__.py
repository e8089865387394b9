"""Fused, exact, drop-in layers for GANs in PyTorch."""

from ganfast import backend, functional, nn
from ganfast._version import __version__
from ganfast.fusion import FusionReport, fuse, unfuse

__all__ = ["FusionReport", "__version__", "backend", "functional", "fuse", "nn", "unfuse"]
