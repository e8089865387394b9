"""Measure ganfast beside its peers, values checked first, and verify it against torch."""

# Modules of cases and checks register them when they are imported.
from ganfast.bench import batch_norm_act, batch_norm_act_checks, losses, losses_checks, step
from ganfast.bench.case import SUITES, Case, Options, Suite
from ganfast.bench.model import verify_model
from ganfast.bench.result import Result
from ganfast.bench.timing import Timing, compare
from ganfast.bench.verify import Row, verify
from ganfast.machine import fingerprint

__all__ = [
    "SUITES",
    "Case",
    "Options",
    "Result",
    "Row",
    "Suite",
    "Timing",
    "batch_norm_act",
    "batch_norm_act_checks",
    "compare",
    "fingerprint",
    "losses",
    "losses_checks",
    "step",
    "verify",
    "verify_model",
]
