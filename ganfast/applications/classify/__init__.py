"""Classification of images of which few have labels: GANs beside training on the labels alone."""

from ganfast.applications.classify.protocol import METHODS, Outcome, check, classify
from ganfast.applications.classify.task import Options

__all__ = ["METHODS", "Options", "Outcome", "check", "classify"]
