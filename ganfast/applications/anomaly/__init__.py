"""Anomaly detection with a GAN trained on normal images only."""

from ganfast.applications.anomaly.detector import METHODS, Detector, DetectorOptions, train_detector
from ganfast.applications.anomaly.files import load_detector, save_detector
from ganfast.applications.anomaly.protocol import Outcome, evaluate

__all__ = [
    "METHODS",
    "Detector",
    "DetectorOptions",
    "Outcome",
    "evaluate",
    "load_detector",
    "save_detector",
    "train_detector",
]
