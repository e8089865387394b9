"""Classification with few labels, by GANs and by the labels alone."""

from ganfast.applications.classify.protocol import METHODS, Outcome, check, classify, train
from ganfast.applications.classify.task import Options

__all__ = ["METHODS", "Options", "Outcome", "check", "classify", "train"]
