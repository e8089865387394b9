"""Keep the C library from returning memory to the system between steps."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for later tensors, for the rest of the process.

    glibc maps tensors of 32 MB and more one by one and unmaps each when it is freed, so that every
    output of a large layer is written through page faults that cost more than its arithmetic; it
    also returns the end of its heap whenever that is free. After this call it does neither: the
    process keeps its peak memory.
    :class:`Trainer` calls it on a CPU; importing ganfast does not.

    Returns:
        Whether glibc accepted it; False if the C library is another one.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html

    Examples:
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
