"""Reads a tensor out of the middle of a file as a view of the page cache, so that it takes no memory of its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from megatron_lm_zh.convert.engine import TensorSpec


def mapped(path: Path, offset: int, spec: TensorSpec) -> Tensor:
    """The tensor whose numbers stand at `offset`, row after row.

    It is a private mapping: writing to it would not reach the file. A tensor that does not begin at a multiple of its
    item size is copied, as the CPU cannot read it in place.

    Raises:
        OSError: the file cannot be read.
        RuntimeError: the file is shorter than that.
    """
    if spec.num_bytes == 0:
        return torch.empty(spec.shape, dtype=spec.dtype)
    _read_ahead(path, offset, spec.num_bytes)
    whole = torch.from_file(str(path), shared=False, size=offset + spec.num_bytes, dtype=torch.uint8)
    numbers = whole[offset:]
    if offset % spec.dtype.itemsize:
        numbers = numbers.clone()
    return numbers.view(spec.dtype).view(spec.shape)


def _read_ahead(path: Path, offset: int, length: int) -> None:
    """Asks for the bytes at once; a mapping alone is read in small portions, as it is touched."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
