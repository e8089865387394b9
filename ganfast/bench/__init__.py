"""Measure ganfast beside its peers, in one run, values checked first."""

from ganfast.bench.machine import fingerprint
from ganfast.bench.timing import Timing, compare

__all__ = ["Timing", "compare", "fingerprint"]
