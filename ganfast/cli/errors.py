"""Errors of a command: one line and exit code 2."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ganfast.training import CheckpointError, DataError, DivergenceError, ProcessError

__all__ = ["INTERRUPTED", "CommandError", "in_one_line", "opened", "require"]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class CommandError(Exception):
    """Bad input: the message goes to standard error in one line, and the exit code is 2."""


@contextmanager
def in_one_line(out: str | Path) -> Iterator[None]:
    """Turn what data, checkpoints, training and the folder to write to can get wrong into one line.

    Raises:
        CommandError: in place of such an error.
    """
    try:
        yield
    except (DataError, CheckpointError, DivergenceError, ProcessError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot write to --out {out}: {error}") from error


def opened(path: str, mode: str) -> IO[Any]:
    """Open a file to write.

    Raises:
        CommandError: it cannot be opened.
    """
    try:
        return open(path, mode)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def require(*packages: str) -> None:
    """Check that packages are installed, before hours of work.

    Raises:
        ModuleNotFoundError: one is not installed; ``main`` says which extra brings it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
