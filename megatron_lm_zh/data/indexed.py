"""Megatron's .bin/.idx pair, byte for byte megatron-core's IndexedDataset, read and written with NumPy alone.

The .idx file, little-endian: magic ``MMIDIDX\\0\\0``; version 1 (uint64); dtype code (uint8); number of sequences n
(uint64); number of document marks d (uint64); sequence lengths in tokens (int32 [n]); sequence pointers, byte offsets
in the .bin file (int64 [n]); document indices, the first sequence of each document and n at the end (int64 [d]).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import atomic_file, sync_directory, temporary_name, write_error

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, np.dtype] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
LARGEST_UINT16_VOCABULARY = 65499  # megatron-core's bound, a little below what 16 bits hold


def bin_path(prefix: str | Path) -> Path:
    """The token file of a dataset."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The index file of a dataset."""
    return Path(f"{prefix}.idx")


def dtype_for(vocab_size: int) -> np.dtype:
    """Smallest dtype that megatron-core gives a vocabulary: uint16 below 65,500 ids, else int32."""
    return DTYPE_CODES[8] if vocab_size <= LARGEST_UINT16_VOCABULARY else DTYPE_CODES[4]


class IndexedDataset:
    """A memory-mapped .bin/.idx pair; item i is the tokens of sequence i.

    Args:
        prefix: path without ``.bin`` and ``.idx``.

    Raises:
        UserError: a file is missing, of another format, truncated, or the two do not belong together.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        for path in (idx_path(prefix), bin_path(prefix)):
            if not path.is_file():
                raise UserError("no such file", where=str(path), expected="a dataset's .bin and .idx side by side")
        self._read_index(idx_path(prefix))
        self._check_bin(bin_path(prefix))
        self._tokens = np.memmap(bin_path(prefix), dtype=self.dtype, mode="r") if self.num_tokens else None

    def _read_index(self, path: Path) -> None:
        found = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(HEADER.size)
        if not head.startswith(MAGIC):
            raise UserError(f"not a Megatron index: it begins with {head[:9]!r}", where=str(path), expected=repr(MAGIC))
        if len(head) < HEADER.size:
            raise UserError(
                f"truncated: {found} bytes", where=str(path), expected=f"a header of {HEADER.size} bytes at least"
            )
        _, version, code, sequences, marks = HEADER.unpack(head)
        if version != VERSION:
            raise UserError(f"index version {version}", where=str(path), expected=f"version {VERSION}")
        if code not in DTYPE_CODES:
            known = ", ".join(f"{key} ({dtype.name})" for key, dtype in DTYPE_CODES.items())
            raise UserError(f"unknown dtype code {code}", where=str(path), expected=f"one of {known}")
        expected = HEADER.size + 12 * sequences + 8 * marks
        if found != expected:
            raise UserError(
                f"truncated or damaged: {found} bytes",
                where=str(path),
                expected=f"{expected} bytes for {sequences} sequences and {marks} document marks",
            )
        self.dtype = DTYPE_CODES[code]
        content = np.memmap(path, dtype=np.uint8, mode="r")
        at = HEADER.size
        self.sequence_lengths: NDArray[np.int32] = np.frombuffer(content, "<i4", sequences, at)
        at += self.sequence_lengths.nbytes
        self.sequence_pointers: NDArray[np.int64] = np.frombuffer(content, "<i8", sequences, at)
        at += self.sequence_pointers.nbytes
        self.document_indices: NDArray[np.int64] = np.frombuffer(content, "<i8", marks, at)
        last = int(self.document_indices[-1]) if marks else -1
        if last != sequences:
            raise UserError(
                f"damaged: the last document ends at sequence {last}", where=str(path), expected=str(sequences)
            )

    def _check_bin(self, path: Path) -> None:
        found, expected = path.stat().st_size, 0
        if len(self):
            expected = int(self.sequence_pointers[-1]) + int(self.sequence_lengths[-1]) * self.dtype.itemsize
        if found != expected:
            raise UserError(
                f"{found} bytes, which is {'less' if found < expected else 'more'} than its index describes",
                where=str(path),
                expected=f"{expected} bytes",
                mend="the file is truncated, or the .idx belongs to another .bin: preprocess or copy it again",
            )
        self.num_tokens = found // self.dtype.itemsize

    def __len__(self) -> int:
        """Number of sequences (documents, in datasets that `mlzh preprocess` wrote)."""
        return len(self.sequence_lengths)

    def __getitem__(self, index: int) -> NDArray:
        """Tokens of sequence ``index``, in the file's dtype."""
        return self.get(index)

    def get(self, index: int, offset: int = 0, length: int | None = None) -> NDArray:
        """``length`` tokens (default: all that are left) of sequence ``index`` from token ``offset`` on."""
        begin = int(self.sequence_pointers[index]) // self.dtype.itemsize
        end = begin + int(self.sequence_lengths[index])
        begin += offset
        if length is not None:
            end = min(end, begin + length)
        return self._tokens[begin:end] if self._tokens is not None else np.empty(0, self.dtype)


class IndexedDatasetWriter:
    """Writes a .bin/.idx pair, one sequence a document; both appear when `finalize` is done, or neither.

    As a context manager it finalizes at the end of the block, and removes its temporary files when the block raises.

    Args:
        prefix: path without ``.bin`` and ``.idx``; its directory exists.
        dtype: of the tokens, see `dtype_for`.

    Raises:
        UserError: a file cannot be written, e.g. because the disk is full.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.num_tokens = 0
        self.bin_sha256 = hashlib.sha256()
        self.idx_sha256 = hashlib.sha256()
        self._code = next(code for code, known in DTYPE_CODES.items() if known == self.dtype)
        self._bin, self._idx = bin_path(prefix), idx_path(prefix)
        self._temporary = temporary_name(self._bin)
        self._lengths: list[NDArray[np.int32]] = []
        try:
            self._stream = self._temporary.open("wb")
        except OSError as error:
            raise write_error(self._bin, error) from error

    def add_document(self, tokens: Iterable[int] | NDArray) -> None:
        """Appends one document."""
        content = np.asarray(tokens, dtype=self.dtype)
        self.add_documents(content, np.array([content.size], dtype=np.int32))

    def add_documents(self, tokens: NDArray, lengths: NDArray[np.int32]) -> None:
        """Appends documents: their tokens one after another, and the number of tokens of each."""
        assert int(lengths.sum(dtype=np.int64)) == tokens.size
        content = np.ascontiguousarray(tokens, dtype=self.dtype).tobytes()
        try:
            self._stream.write(content)
        except OSError as error:
            self.abort()
            raise write_error(self._bin, error) from error
        self.bin_sha256.update(content)
        self._lengths.append(np.asarray(lengths, dtype=np.int32))
        self.num_tokens += tokens.size

    def finalize(self) -> None:
        """Gives both files their names, once their bytes are on the disk."""
        lengths = np.concatenate([np.empty(0, np.int32), *self._lengths])
        ends = np.cumsum(lengths, dtype=np.int64)
        pointers = (ends - lengths) * self.dtype.itemsize
        marks = np.arange(len(lengths) + 1, dtype=np.int64)
        header = HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(marks))
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            with atomic_file(self._idx) as index:
                for content in (header, lengths.tobytes(), pointers.tobytes(), marks.tobytes()):
                    index.write(content)
                    self.idx_sha256.update(content)
                index.flush()
                self._temporary.replace(self._bin)  # only now is nothing left that a full disk could stop
            sync_directory(self._bin.parent)
        except OSError as error:
            raise write_error(self._bin, error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Closes and removes what is unfinished."""
        try:
            self._stream.close()  # flushes, which fails once more on a full disk
        except OSError:
            self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> IndexedDatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self.abort()
