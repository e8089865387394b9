"""Measure ganfast beside its peers, values checked first, and verify it against torch."""

from ganfast.bench import batch_norm_act_checks, losses_checks  # they register their checks
from ganfast.bench.machine import fingerprint
from ganfast.bench.timing import Timing, compare
from ganfast.bench.verify import Row, verify

__all__ = [
    "Row",
    "Timing",
    "batch_norm_act_checks",
    "compare",
    "fingerprint",
    "losses_checks",
    "verify",
]
