"""Errors and warnings of training."""

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "ProcessError",
    "TrainingWarning",
    "first_line",
]


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
