"""Drop-in layers and losses: subclasses of torch's whose forward calls a fused kernel.

Each but GANLoss is a subclass of the torch layer of the same name: constructor, parameters,
buffers, state_dict, ``isinstance`` and initialisation by class name are torch's.
"""

from ganfast.nn.batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    SyncBatchNorm,
)
from ganfast.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from ganfast.nn.losses import BCELoss, BCEWithLogitsLoss, GANLoss

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GANLoss",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "SyncBatchNorm",
]
