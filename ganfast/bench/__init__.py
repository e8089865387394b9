"""Measure ganfast beside its peers, values checked first."""

# Modules of cases register them when they are imported.
from ganfast.bench import batch_norm_act, losses, step
from ganfast.bench.case import SUITES, Case, Options, Suite
from ganfast.bench.result import Result
from ganfast.bench.timing import Timing, compare
from ganfast.machine import fingerprint

__all__ = [
    "SUITES",
    "Case",
    "Options",
    "Result",
    "Suite",
    "Timing",
    "batch_norm_act",
    "compare",
    "fingerprint",
    "losses",
    "step",
]
