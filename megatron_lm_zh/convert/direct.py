"""Writes to any place of a file past the page cache, where the file system can.

A conversion writes once, and more than the memory holds. Through the page cache the kernel would find, fill and free a
page for each 4 KiB, which takes longer than a fast disk does.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

_ALIGNMENT = 4096
"""Places, lengths and memory of direct writes are multiples of so many bytes (open(2), O_DIRECT)."""
_CHUNK = 4 << 20
_WORTH_IT = 1 << 20
"""Fewer bytes go through the page cache, which does not wait for the disk."""


class DirectWriter:
    """Writes through a small buffer of its own: each thread has one."""

    def __init__(self) -> None:
        self._chunk = memoryview(mmap.mmap(-1, _CHUNK))  # begins at a page

    def write(self, path: Path, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Writes buffers, one after the other, from byte `offset` of a file that is there.

        Raises:
            OSError: the file cannot be written.
        """
        source = _Source(buffers)
        cuts = _cuts(offset, offset + sum(map(len, buffers)))
        with _opened(path, 0) as plain, _opened(path, getattr(os, "O_DIRECT", 0)) as direct:
            for start, stop in pairwise(cuts):
                part = self._chunk[: stop - start]
                source.fill(part)
                fits = start % _ALIGNMENT == stop % _ALIGNMENT == 0
                _write(direct if fits else plain, plain, part, start)


class _Source:
    """Buffers as one stream."""

    def __init__(self, buffers: Sequence[bytes | memoryview]) -> None:
        self._left = deque(np.frombuffer(buffer, np.uint8) for buffer in buffers)

    def fill(self, target: memoryview) -> None:
        """Takes the next bytes."""
        room = np.frombuffer(target, np.uint8)  # NumPy copies without Python's lock
        while len(room):
            buffer = self._left.popleft()
            count = min(len(room), len(buffer))
            room[:count] = buffer[:count]
            room = room[count:]
            if count < len(buffer):
                self._left.appendleft(buffer[count:])


def _cuts(start: int, stop: int) -> list[int]:
    """Where the bytes from `start` to `stop` are cut: none of the parts is longer than a chunk, most are aligned."""
    first, last = -(-start // _ALIGNMENT) * _ALIGNMENT, stop // _ALIGNMENT * _ALIGNMENT
    if last - first < _WORTH_IT:
        return [start, stop]
    return sorted({start, *range(first, last, _CHUNK), last, stop})


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor to write to a file; the flags are left out where its file system does not have them."""
    try:
        descriptor = os.open(path, os.O_WRONLY | flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, plain: int, view: memoryview, offset: int) -> None:
    """Writes all of it; what is not aligned as the disk asks, such as the rest of a part, goes to `plain`."""
    while len(view):
        try:
            written = os.pwrite(descriptor, view, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or descriptor == plain:
                raise
            descriptor = plain
        else:
            view, offset = view[written:], offset + written
