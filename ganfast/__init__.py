"""Fused, exact, drop-in layers for GANs in PyTorch."""

from ganfast import backend, functional, nn
from ganfast._version import __version__
from ganfast.fusion import FusionReport, convert_sync_batchnorm, fuse, unfuse

__all__ = [
    "FusionReport",
    "__version__",
    "backend",
    "convert_sync_batchnorm",
    "functional",
    "fuse",
    "nn",
    "unfuse",
]
