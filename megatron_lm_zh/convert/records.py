"""The format in which torch.save puts one tensor: a zip archive that is not compressed, at any place of a file.

The archive holds data.pkl (a pickle: shape, strides, storage), data/0 (the numbers), byteorder and version. Its bytes
before and after the numbers follow from shape and dtype but for a checksum, so the length is known before the numbers
are. Source: PKWARE's APPNOTE.TXT 6.3.10 for zip, torch/serialization.py for what is in it.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from megatron_lm_zh.convert.engine import TensorSpec

_ALIGNMENT = 64  # of the numbers, as torch.save has it
_BEFORE = (("archive/byteorder", b"little"), ("archive/version", b"3\n"))
_NUMBERS = "archive/data/0"
_DATE = 0x21  # 1 January 1980: the same tensor makes the same bytes
_MAX_PICKLE = 1 << 16


def record_length(spec: TensorSpec) -> int:
    """Bytes of the archive of a tensor of this shape and dtype."""
    before, after = _frame(spec, 0)
    return len(before) + spec.num_bytes + len(after)


def record(spec: TensorSpec, blocks: Sequence[memoryview]) -> Sequence[bytes | memoryview]:
    """The archive of a tensor whose bytes are these, as buffers to write one after the other."""
    checksum = 0
    for block in blocks:
        checksum = zlib.crc32(block, checksum)
    before, after = _frame(spec, checksum)
    return before, *blocks, after


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return memoryview(tensor.flatten().view(torch.uint8).numpy()).cast("B")


def _frame(spec: TensorSpec, checksum: int) -> tuple[bytes, bytes]:
    """What stands before the numbers, and what stands after them."""
    before = bytearray()
    central = bytearray()
    for name, content in (("archive/data.pkl", _pickle_of(spec)), *_BEFORE):
        central += _central(name, zlib.crc32(content), len(content), len(before))
        before += _local(name, zlib.crc32(content), len(content), 0) + content
    central += _central(_NUMBERS, checksum, spec.num_bytes, len(before))
    filled = len(before) + len(_local(_NUMBERS, 0, 0, 0))
    before += _local(_NUMBERS, checksum, spec.num_bytes, -filled % _ALIGNMENT)
    return bytes(before), bytes(central) + _ends(len(central), len(before) + spec.num_bytes)


def _local(name: str, checksum: int, size: int, padding: int) -> bytes:
    """Header of one entry. Sizes stand in the zip64 field, whatever they are; `padding` bytes follow it."""
    pad = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    extra = struct.pack("<HHQQ", 1, 16, size, size) + pad
    fixed = struct.pack(
        "<IHHHHHIIIHH", 0x04034B50, 45, 0, 0, 0, _DATE, checksum, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra)
    )
    return fixed + name.encode() + extra


def _central(name: str, checksum: int, size: int, offset: int) -> bytes:
    """Entry of the directory at the archive's end."""
    extra = struct.pack("<HHQQQ", 1, 24, size, size, offset)
    big = 0xFFFFFFFF
    numbers = (0x02014B50, 45, 45, 0, 0, 0, _DATE, checksum, big, big, len(name), len(extra), 0, 0, 0, 0, big)
    return struct.pack("<IHHHHHHIIIHHHHHII", *numbers) + name.encode() + extra


def _ends(length: int, offset: int) -> bytes:
    """The records that close the archive: of a directory of `length` bytes at `offset`."""
    entries = len(_BEFORE) + 2
    zip64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, entries, entries, length, offset)
    locator = struct.pack("<IIQI", 0x07064B50, 0, offset + length, 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, entries, entries, length, 0xFFFFFFFF, 0)
    return zip64 + locator + end


class _TensorPickler(pickle.Pickler):
    """Pickles a tensor as torch.save does; its storage is a reference to data/0."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.storage.TypedStorage):
            kind = getattr(torch, obj._pickle_storage_type())
            return "storage", kind, "0", "cpu", obj._size()
        return None


def _pickle_of(spec: TensorSpec) -> bytes:
    stream = io.BytesIO()
    # the memory of an empty tensor is reserved and never touched
    _TensorPickler(stream, protocol=2).dump(torch.empty(spec.shape, dtype=spec.dtype))
    return stream.getvalue()


@dataclass(frozen=True)
class Stored:
    """Where the numbers of a record stand, and how."""

    offset: int
    """Bytes from the beginning of the file."""
    dtype: torch.dtype
    length: int
    """Bytes of the storage."""
    first: int
    """Number of the storage at which the tensor begins."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def find_record(path: Path, offset: int, length: int) -> Stored:
    """Reads what a record of `length` bytes at `offset` of a file says of its tensor, without its numbers.

    Nothing that the pickle names is called: a record never runs code.

    Raises:
        ValueError: it is no record of one tensor.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(Window(file, offset, length)) as archive:
                entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
                shown, numbers = entries["data.pkl"], entries["data/0"]
                if shown.file_size > _MAX_PICKLE or shown.compress_type or numbers.compress_type:
                    raise ValueError("not the archive of one tensor")
                found = _LayoutUnpickler(io.BytesIO(archive.read(shown))).load()
        except OSError:
            raise
        except Exception as error:  # a damaged archive makes zipfile and pickle raise nearly anything, at any length
            raise ValueError(str(error)[:200] or type(error).__name__) from error
        if not isinstance(found, _Layout) or not found.fits(numbers.file_size):
            raise ValueError("not the archive of one tensor")
        file.seek(offset + numbers.header_offset)
        names = struct.unpack("<HH", file.read(30)[26:].ljust(4, b"\0"))
        start = numbers.header_offset + 30 + sum(names)
        if start + numbers.file_size > length:
            raise ValueError("the numbers reach beyond the record")
    return Stored(offset + start, found.dtype, numbers.file_size, found.first, found.shape, found.stride)


@dataclass(frozen=True)
class _Layout:
    """A tensor in words."""

    dtype: torch.dtype
    first: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def fits(self, num_bytes: int) -> bool:
        """Whether a storage of so many bytes holds the tensor."""
        numbers = (self.first, *self.shape, *self.stride)
        if not isinstance(self.dtype, torch.dtype) or not all(type(n) is int and n >= 0 for n in numbers):
            return False
        if len(self.shape) != len(self.stride) or num_bytes % self.dtype.itemsize:
            return False
        last = self.first + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return 0 in self.shape or last < num_bytes // self.dtype.itemsize


def _layout(storage: Any, first: Any, shape: Any, stride: Any, *more: Any) -> _Layout:
    """Stands for torch's function that builds a tensor; with more than two arguments more, the third is its dtype."""
    if not (isinstance(shape, tuple) and isinstance(stride, tuple)):
        raise ValueError("not the archive of one tensor")
    return _Layout(more[2] if len(more) > 2 and isinstance(more[2], torch.dtype) else storage, first, shape, stride)


class _LayoutUnpickler(pickle.Unpickler):
    """Knows the names that torch.save writes of one tensor, and calls none of them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3")):
            return _layout
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        found = getattr(torch, name, None) if module in ("torch", "torch.storage") else None
        if isinstance(found, torch.dtype):
            return found
        if found is torch.UntypedStorage:
            return _Kind(torch.uint8)
        dtype = getattr(found, "_dtype", None)  # the public name of it warns
        if name.endswith("Storage") and isinstance(dtype, torch.dtype):
            return _Kind(dtype)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a tensor's record")

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and pid[2] == "0"):
            raise pickle.UnpicklingError("not the archive of one tensor")
        return pid[1].dtype if isinstance(pid[1], _Kind) else None


@dataclass(frozen=True)
class _Kind:
    """Stands for a class of storages."""

    dtype: torch.dtype


class Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._length - self._position)
        self._file.seek(self._offset + self._position)
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._position += len(content)
        return content
