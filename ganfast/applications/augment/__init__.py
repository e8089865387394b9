"""Training of a classifier with few labels, with and without generated images."""

from ganfast.applications.augment.conditional import (
    GeneratorOptions,
    generate,
    train_conditional,
)
from ganfast.applications.augment.experiment import (
    METHODS,
    AugmentOptions,
    SeedResult,
    run_seed,
    summarise,
)
from ganfast.applications.augment.figures import plot_accuracies, save_class_grid
from ganfast.applications.augment.folders import save_image_folder
from ganfast.applications.classifier import Classifier, accuracy, train_classifier

__all__ = [
    "METHODS",
    "AugmentOptions",
    "Classifier",
    "GeneratorOptions",
    "SeedResult",
    "accuracy",
    "generate",
    "plot_accuracies",
    "run_seed",
    "save_class_grid",
    "save_image_folder",
    "summarise",
    "train_classifier",
    "train_conditional",
]
