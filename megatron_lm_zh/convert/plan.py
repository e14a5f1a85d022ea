"""What a conversion will write: every tensor, the file and the place in it that it goes to."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_lm_zh.convert.engine import TensorSpec


@dataclass(frozen=True)
class Piece:
    """One tensor of the result, or one expert's part of it."""

    key: str
    part: int | None
    spec: TensorSpec
    """Shape and dtype of the piece; a part has the length 1 on its first axis."""
    file: str
    offset: int
    """Where its bytes begin in the file."""
    length: int
    """Bytes that it takes there: the numbers and what the format puts around them."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of tensors."""

    name: str
    num_bytes: int
    header: bytes = b""
    """What stands at its beginning."""


@dataclass(frozen=True)
class Plan:
    """The files of a result and the pieces in them, in the order of both."""

    files: tuple[PlannedFile, ...]
    pieces: tuple[Piece, ...]
    encode: Callable[[TensorSpec, Sequence[memoryview]], Sequence[bytes | memoryview]]
    """The buffers that a piece and the bytes of its blocks become in its file, `length` bytes in all."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)

    def fingerprint(self, *more: object) -> str:
        """Changes whenever any byte of the result could; `more` says where the numbers come from."""
        told = json.dumps([self.to_json(), [file.header.hex() for file in self.files], *more])
        return hashlib.sha256(told.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Files and pieces, with shapes, dtypes and bytes."""
        return {
            "bytes": self.num_bytes,
            "files": [{"file": file.name, "bytes": file.num_bytes} for file in self.files],
            "tensors": [
                {
                    "key": piece.key,
                    "part": piece.part,
                    "shape": list(piece.spec.shape),
                    "dtype": str(piece.spec.dtype).removeprefix("torch."),
                    "bytes": piece.spec.num_bytes,
                    "file": piece.file,
                    "offset": piece.offset,
                }
                for piece in self.pieces
            ],
        }

    def lines(self) -> Iterator[str]:
        """The plan in words, one line a piece, then one a file, then the totals."""
        for piece in self.pieces:
            key = piece.key if piece.part is None else f"{piece.key}[{piece.part}]"
            dtype = str(piece.spec.dtype).removeprefix("torch.")
            yield f"{piece.file}  {key}  {list(piece.spec.shape)}  {dtype}  {piece.spec.num_bytes:,} bytes"
        pieces = Counter(piece.file for piece in self.pieces)
        for file in self.files:
            yield f"{file.name}: {pieces[file.name]:,} tensors, {file.num_bytes:,} bytes"
        yield f"{len(self.pieces):,} tensors, {len(self.files):,} files, {self.num_bytes:,} bytes"


@dataclass(frozen=True)
class Job:
    """One step of the work: pieces that are made together."""

    pieces: tuple[Piece, ...]
    memory: int
    """Bytes that it may take while it runs."""
    compute: Callable[[], Iterable[Sequence[Tensor]]]
    """Makes the pieces, in their order, each as blocks of rows that follow one another."""


def identity_of(*directories: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file of some directories: what a source is known by.

    Raises:
        OSError: a directory cannot be read.
    """
    found = []
    for number, directory in enumerate(directories):
        for path in sorted(directory.iterdir()):
            if path.is_file():
                state = path.stat()
                found.append((f"{number}/{path.name}", state.st_size, state.st_mtime_ns))
    return found


def cut(specs: Mapping[Any, TensorSpec], max_bytes: int) -> Iterator[dict[Any, TensorSpec]]:
    """Cuts tensors, in order, into runs of at most `max_bytes` (a larger tensor has a file of its own)."""
    run: dict[Any, TensorSpec] = {}
    size = 0
    for name, spec in specs.items():
        if run and size + spec.num_bytes > max_bytes:
            yield run
            run, size = {}, 0
        run[name] = spec
        size += spec.num_bytes
    yield run


def natural(name: str) -> tuple[Any, ...]:
    """A key that sorts names by the numbers in them: layer 2 before layer 10."""
    return tuple((int(word), "") if word.isdecimal() else (-1, word) for word in name.split("."))
