"""How the C library hands out memory."""

from __future__ import annotations

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Keep memory that was freed for the next tensor, in place of giving it back to the system.

    A training step on the CPU frees and asks for many tensors of megabytes, a volume renderer's for some of
    100 MB. That the system takes them back, and hands them out page by page, set to zero, costs a volume
    renderer as much time as all its arithmetic, and a convolution on pictures of 128 x 128 half as much.
    What the process holds grows, by up to a third.

    Returns:
        Whether the C library can do so (glibc, so Linux); elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)
