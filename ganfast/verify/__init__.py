"""Compare every op, and a user's own model, with torch in float64."""

# Modules of checks register them when they are imported.
from ganfast.verify import batch_norm_act, instance_norm_act, losses
from ganfast.verify.model import verify_model
from ganfast.verify.runner import CHECKS, DTYPES, Check, Row, verify

__all__ = [
    "CHECKS",
    "DTYPES",
    "Check",
    "Row",
    "batch_norm_act",
    "instance_norm_act",
    "losses",
    "verify",
    "verify_model",
]
