"""Train a GAN: data, one step, and the loop around it with its files."""

from ganfast.training.batches import Batches
from ganfast.training.checkpoints import load_checkpoint, load_newest, save_checkpoint
from ganfast.training.data import ImageData, load_images
from ganfast.training.errors import (
    CheckpointError,
    DataError,
    DivergenceError,
    ProcessError,
    TrainingWarning,
)
from ganfast.training.memory import keep_freed_memory
from ganfast.training.options import PRECISIONS, TrainingOptions
from ganfast.training.processes import Processes, joined
from ganfast.training.quality import Quality, frechet_distance
from ganfast.training.runs import load_run
from ganfast.training.step import GANStep, StepResult
from ganfast.training.trainer import Trainer

__all__ = [
    "PRECISIONS",
    "Batches",
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "GANStep",
    "ImageData",
    "ProcessError",
    "Processes",
    "Quality",
    "StepResult",
    "Trainer",
    "TrainingOptions",
    "TrainingWarning",
    "frechet_distance",
    "joined",
    "keep_freed_memory",
    "load_checkpoint",
    "load_images",
    "load_newest",
    "load_run",
    "save_checkpoint",
]
