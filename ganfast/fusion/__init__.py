"""Fuse the layers of an existing model, by modules or as a graph, and undo it."""

from ganfast.fusion.modules import fuse, unfuse
from ganfast.fusion.report import FusedLayer, FusionReport
from ganfast.fusion.sync_batchnorm import convert_sync_batchnorm
from ganfast.fusion.unfused import stock

__all__ = ["FusedLayer", "FusionReport", "convert_sync_batchnorm", "fuse", "stock", "unfuse"]
