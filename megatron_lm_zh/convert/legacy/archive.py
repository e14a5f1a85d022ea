"""Reads what torch.save wrote, whatever is in it, without running any of it and without reading a tensor's numbers."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.mapped import mapped
from megatron_lm_zh.convert.records import Window
from megatron_lm_zh.errors import UserError


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a file of torch.save."""

    path: Path
    offset: int
    """Bytes from the beginning of the file to the storage's numbers."""
    length: int
    """Bytes of the storage, which other tensors may share."""
    dtype: torch.dtype
    first: int
    """Number of the storage at which the tensor begins."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, as a view of the file; UserError where it cannot be read."""
        try:
            size = self.dtype.itemsize
            last = self.first + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
            if 0 in self.shape:
                return torch.empty(self.shape, dtype=self.dtype)
            if min((self.first, *self.shape, *self.stride)) < 0 or (last + 1) * size > self.length:
                raise ValueError("a tensor reaches beyond its storage")
            start = self.offset + self.first * size
            numbers = mapped(self.path, start, TensorSpec((last + 1 - self.first,), self.dtype))
            return numbers.as_strided(self.shape, self.stride)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"unreadable: {error}", where=str(self.path)) from error


class Unknown:
    """Stands for any object whose class is not one of the few that are known; it keeps nothing and does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes and forgets whatever the object would have been made of."""

    def __new__(cls, *arguments: Any, **options: Any) -> Unknown:
        """Takes and forgets the same."""
        return super().__new__(cls)

    def __call__(self, *arguments: Any, **options: Any) -> Unknown:
        """Stands for what a function gives, too."""
        return Unknown()

    def __setstate__(self, state: Any) -> None:
        """Takes and forgets a state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Takes and forgets an entry."""

    def append(self, value: Any) -> None:
        """Takes and forgets an entry."""

    def extend(self, values: Any) -> None:
        """Takes and forgets entries."""

    def __hash__(self) -> int:
        return id(self)


def read_archive(path: Path, offset: int = 0, length: int | None = None) -> Any:
    """What a file of torch.save holds: dicts, lists, numbers, words, Namespaces; tensors as `StoredTensor`.

    Args:
        path: the file.
        offset: where in it the archive begins.
        length: bytes of the archive; None: up to the file's end.

    Raises:
        UserError: it is missing, damaged, compressed or in torch's format from before 1.6.
    """
    try:
        size = path.stat().st_size - offset if length is None else length
        with path.open("rb") as whole, Window(whole, offset, size) as file, zipfile.ZipFile(file) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
                raise ValueError("its numbers are big-endian")
            places = {}
            for name, info in entries.items():
                if name.startswith("data/"):
                    if info.compress_type:
                        raise ValueError("its numbers are compressed")
                    file.seek(info.header_offset)
                    names = struct.unpack("<HH", file.read(30)[26:])
                    place = offset + info.header_offset + 30 + sum(names)
                    places[name.removeprefix("data/")] = place, info.file_size
            with archive.open(entries["data.pkl"]) as content:
                return _Unpickler(content, path, places).load()
    except Exception as error:  # damaged bytes make zipfile and pickle raise nearly anything
        what = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise UserError(f"unreadable: {what}", where=str(path), expected="a file that torch.save wrote") from error


@dataclass(frozen=True)
class _Storage:
    place: tuple[int, int]
    dtype: torch.dtype | None


class _Unpickler(pickle.Unpickler):
    """Knows containers, Namespaces and tensors; every other class becomes `Unknown`."""

    def __init__(self, content: Any, path: Path, places: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(content)
        self._path, self._places = path, places

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3")):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _first
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        if (module, name) == ("builtins", "set"):
            return set
        if module in ("torch", "torch.storage"):
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype) or found is torch.Size:
                return found
            if name.endswith("Storage"):
                return _Kind(getattr(found, "_dtype", None))
        return Unknown

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, _ = pid
        return _Storage(self._places[key], kind.dtype)

    def _tensor(self, storage: Any, first: int, shape: Any, stride: Any, *more: Any) -> StoredTensor:
        dtype = more[2] if len(more) > 2 and isinstance(more[2], torch.dtype) else storage.dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor without a dtype")
        offset, length = storage.place
        return StoredTensor(self._path, offset, length, dtype, first, tuple(shape), tuple(stride))


@dataclass(frozen=True)
class _Kind:
    """Stands for a class of storages."""

    dtype: torch.dtype | None


def _first(value: Any, *more: Any) -> Any:
    return value
