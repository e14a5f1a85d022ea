"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h; M_MMAP_THRESHOLD once set no longer moves by itself
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 << 20  # where it moves to by itself in a process that frees large blocks


@contextmanager
def large_blocks_go_back(num_bytes: int = 1 << 20) -> Iterator[None]:
    """Memory blocks of at least so many bytes are the system's again as soon as they are freed, while this lasts.

    Otherwise glibc keeps freed blocks below 32 MiB, and does so for each thread apart. Where the C library has no such
    setting, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, num_bytes)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
