"""Errors and warnings of training."""

__all__ = [
    "MALFORMED",
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "ProcessError",
    "TrainingWarning",
    "counted",
    "first_line",
]


MALFORMED = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What using a checkpoint raises that has a valid checksum and other contents than it must have."""


class DivergenceError(Exception):
    """Training met a loss that is not finite; the message says where, and what is saved."""


class ProcessError(RuntimeError):
    """Another of the processes that train together failed or was lost."""


class DataError(ValueError):
    """Images that cannot be used; the message says what was given and what to do."""


class TrainingWarning(UserWarning):
    """Training goes on, but not as it should; the message says what was seen and what to do."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind; the message names it."""


def counted(count: int, thing: str) -> str:
    """Return a number with what it counts, such as "1 image" and "2 images"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
