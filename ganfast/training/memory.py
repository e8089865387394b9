"""Keep the C library from giving memory back to the system between two steps."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for later tensors, for the rest of the process.

    glibc takes tensors of 32 MB and more from the system one by one and gives each back when it is
    freed, so that every output of a large layer is written through page faults that cost more
    than its arithmetic; it also gives back the end of its heap whenever that is free. After this
    call it does neither: the process keeps the most memory that it ever had in use.
    :class:`Trainer` calls it on a CPU; importing ganfast does not.

    Returns:
        Whether the C library was told: False where it is not glibc.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html

    Example:
        >>> from ganfast.training import keep_freed_memory
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no glibc: Windows, macOS, musl
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
