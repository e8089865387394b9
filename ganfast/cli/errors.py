"""Errors of a command: one line and exit code 2."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ganfast.training.output import locked, set_aside

__all__ = [
    "INTERRUPTED",
    "CommandError",
    "check_writable",
    "opened",
    "output_folder",
    "require",
    "writing_to",
]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class CommandError(Exception):
    """Bad input: the message goes to standard error in one line, and the exit code is 2."""


@contextmanager
def writing_to(path: Path, what: str = "--out") -> Iterator[None]:
    """Name the folder or file in errors of writing to it.

    Raises:
        CommandError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot write to {what} {path}: {error}") from error


def check_writable(path: Path) -> None:
    """Check that a file can be written, before the work that makes it; it is left as it was.

    Raises:
        CommandError: it cannot.
    """
    with writing_to(path, "file"):
        exists = path.exists()
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666))
        if not exists:
            path.unlink()


@contextmanager
def output_folder(out: Path, *written: str) -> Iterator[None]:
    """Make a folder, for this process alone, with what an earlier one wrote set aside.

    Args:
        out: the folder.
        written: patterns of the names of what the command writes.

    Raises:
        CommandError: the folder cannot be written to, or another process writes to it.
    """
    with writing_to(out), locked(out):
        set_aside(out, written)
        yield


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
