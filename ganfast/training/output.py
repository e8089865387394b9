"""What a command writes: one at a time to a folder, nothing of an earlier one lost, files whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not POSIX: folders are not locked there
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked", "set_aside", "sync_folder", "write_whole"]

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # by some network file systems


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from writing to it; the lock ends with the process.

    Raises:
        BlockingIOError: another process writes to it.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with _lock(folder / LOCK) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    """Open and lock a file."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read()
            file.close()
            message = f"process {holder} writes there: wait for it, or give another folder"
            raise BlockingIOError(error.errno, message) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        if os.fstat(file.fileno()).st_nlink:  # else, its last owner removed it meanwhile
            return file
        file.close()


def set_aside(folder: Path, patterns: Sequence[str]) -> None:
    """Move the files of a folder that match patterns to a new folder ``earlier-1`` in it."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if not files:
        return
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    earlier = folder / f"earlier-{number}"
    earlier.mkdir()
    for file in files:
        file.rename(earlier / file.name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whose name appears once its bytes are on disk: else, what was there stays.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        path.write_bytes(content)  # to a device or a pipe; or say why not
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # a second Ctrl-C too
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
