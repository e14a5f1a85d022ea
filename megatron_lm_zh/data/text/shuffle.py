"""Documents of all shards in a random order, with bounded memory: scattered to buckets, each bucket sorted on its own.

A document's place is decided by a 64-bit key, a function of the seed and of the document's number in the job (the
stream of SplitMix64, which gives no key twice). So the order is the same whatever the shards and the workers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_lm_zh.data.text.tokenizing import Recipe, Tell, Told, WorkFiles, work_file, write_all
from megatron_lm_zh.files import write_bytes, write_error
from megatron_lm_zh.tokenizer.encoders import Encoder

BUCKET = 64 << 20  # bytes of ids of a bucket and of a piece of a shard, both held in memory
MOST_DOCUMENTS = 1 << 21  # of a piece
SHUFFLE = "shuffle.json"
"""In the work directory: which shuffle is under way."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keys_of(indices: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The keys of documents by their numbers in the job: SplitMix64's outputs, its state set by the seed."""
    state = _mix(np.array([seed], np.uint64) + _GOLDEN)
    return _mix(state + (indices + np.uint64(1)) * _GOLDEN)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def bucket_bits(bytes_: int) -> int:
    """The number of buckets for so many bytes of ids, as a power of two."""
    return max(0, (bytes_ // BUCKET).bit_length())


def _buckets(keys: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    return (keys >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(keys), np.int64)


@dataclass(frozen=True)
class Scatter:
    """Task: a shard's documents, sorted by bucket, to one file a key; the shard's own files then go.

    The file is pieces, each: documents and ids before each bucket (int64 [buckets + 1] both), numbers of the documents
    in the job (uint64 [n]), their lengths (int32 [n]), ids.
    """

    shard: str
    first: int
    """Documents of the job before the shard."""
    documents: int
    bits: int
    seed: int

    @property
    def name(self) -> str:
        """See `Task`."""
        return f"scatter_{self.shard}"

    def run(self, recipe: Recipe, encoder: Callable[[], Encoder], tell: Tell) -> dict[str, Any]:
        """See `Task`."""
        directory = recipe.directory
        keys = range(len(recipe.keys))
        own = [work_file(directory, self.shard, f"-{key}{suffix}") for key in keys for suffix in (".bin", ".len")]
        try:
            pieces = []
            with WorkFiles([work_file(directory, self.name, f"-{key}.bin") for key in keys]) as streams:
                for key, stream in zip(keys, streams, strict=True):
                    pieces.append(self._scatter(own[2 * key], own[2 * key + 1], np.dtype(recipe.dtype), stream))
            said = {"pieces": pieces}
            write_bytes(work_file(directory, self.name, ".json"), orjson.dumps(said))
            for path in own:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(Path(directory), error) from error
        return said

    def _scatter(self, ids: Path, lengths: Path, dtype: np.dtype, target: BinaryIO) -> list[list[int]]:
        """Writes the pieces of one key; returns [offset, documents] of each."""
        pieces, at, done = [], 0, 0
        sizes = np.fromfile(lengths, np.int32) if self.documents <= MOST_DOCUMENTS else np.memmap(lengths, np.int32)
        with ids.open("rb") as stream:
            while done < self.documents:
                taken = np.asarray(sizes[done : done + MOST_DOCUMENTS])
                fit = int(np.searchsorted(np.cumsum(taken, dtype=np.int64) * dtype.itemsize, BUCKET, "right"))
                taken = taken[: max(1, fit)]
                content = stream.read(int(taken.sum(dtype=np.int64)) * dtype.itemsize)
                indices = np.arange(self.first + done, self.first + done + len(taken), dtype=np.uint64)
                buckets = _buckets(keys_of(indices, self.seed), self.bits)
                order = np.argsort(buckets, kind="stable")
                counts = np.bincount(buckets, minlength=1 << self.bits)
                weights = np.bincount(buckets, taken, minlength=1 << self.bits).astype(np.int64)
                head = [np.concatenate([[0], np.cumsum(each)]).astype(np.int64) for each in (counts, weights)]
                pieces.append([at, len(taken)])
                columns: list[NDArray] = [*head, indices[order], taken[order]]
                for array in columns:
                    write_all(target, array)
                    at += array.nbytes
                write_all(target, _reordered(content, taken, order, dtype.itemsize))
                at += len(content)
                done += len(taken)
        return pieces


@dataclass(frozen=True)
class Gather:
    """Task: one bucket's documents from all shards, in the order of their keys, as if it were a shard."""

    bucket: int
    bits: int
    seed: int

    @property
    def name(self) -> str:
        """See `Task`."""
        return f"bucket_{self.bucket:06d}"

    def run(self, recipe: Recipe, encoder: Callable[[], Encoder], tell: Tell) -> dict[str, Any]:
        """See `Task`."""
        directory, count = recipe.directory, len(recipe.keys)
        starts = np.array(orjson.loads((Path(directory) / SHUFFLE).read_bytes())["starts"], np.uint64)
        suffixes = [f"-{key}{suffix}" for key in range(count) for suffix in (".bin", ".len")] + ["-0.origin"]
        said: dict[str, Any] = {"documents": 0}
        try:
            with WorkFiles([work_file(directory, self.name, suffix) for suffix in suffixes]) as streams:
                for key in range(count):
                    indices, lengths, content = self._collect(recipe, key)
                    order = np.argsort(keys_of(indices, self.seed), kind="stable")
                    write_all(streams[2 * key], _reordered(content, lengths, order, np.dtype(recipe.dtype).itemsize))
                    write_all(streams[2 * key + 1], lengths[order])
                    if key == 0:
                        sources = np.searchsorted(starts, indices[order], "right") - 1
                        write_all(streams[-1], sources.astype("<u4"))
                        said["documents"] = len(indices)
            write_bytes(work_file(directory, self.name, ".json"), orjson.dumps(said))
        except OSError as error:
            raise write_error(Path(directory), error) from error
        tell(Told(0, said["documents"], 0))
        return said

    def _collect(self, recipe: Recipe, key: int) -> tuple[NDArray[np.uint64], NDArray[np.int32], bytes]:
        """Numbers, lengths and ids of the bucket's documents of one key, in the order of the shards."""
        numbers, lengths, content = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], []
        itemsize, table = np.dtype(recipe.dtype).itemsize, 8 * ((1 << self.bits) + 1)
        for shard in orjson.loads((Path(recipe.directory) / SHUFFLE).read_bytes())["shards"]:
            name = f"scatter_{shard}"
            pieces = orjson.loads(work_file(recipe.directory, name, ".json").read_bytes())["pieces"][key]
            file = os.open(work_file(recipe.directory, name, f"-{key}.bin"), os.O_RDONLY)
            try:
                for at, documents in pieces:
                    first, last = np.frombuffer(os.pread(file, 16, at + 8 * self.bucket), np.int64).tolist()
                    begin, end = np.frombuffer(os.pread(file, 16, at + table + 8 * self.bucket), np.int64).tolist()
                    body = at + 2 * table
                    numbers.append(np.frombuffer(_read(file, 8 * (last - first), body + 8 * first), np.uint64))
                    body += 8 * documents
                    lengths.append(np.frombuffer(_read(file, 4 * (last - first), body + 4 * first), np.int32))
                    body += 4 * documents
                    content.append(_read(file, itemsize * (end - begin), body + itemsize * begin))
            finally:
                os.close(file)
        return np.concatenate(numbers), np.concatenate(lengths), b"".join(content)


def _read(file: int, size: int, at: int) -> bytes:
    """Exactly ``size`` bytes; the system gives at most 2 GiB at once."""
    pieces = []
    while size and (piece := os.pread(file, size, at)):
        pieces.append(piece)
        size -= len(piece)
        at += len(piece)
    return b"".join(pieces)


def _reordered(content: bytes, lengths: NDArray[np.int32], order: NDArray[np.int64], itemsize: int) -> bytes:
    """The documents in another order; whole documents are copied, not single ids."""
    ends = np.cumsum(lengths, dtype=np.int64) * itemsize
    begins = ends - lengths.astype(np.int64) * itemsize
    view = memoryview(content)
    pairs = zip(begins[order].tolist(), ends[order].tolist(), strict=True)
    return b"".join([view[begin:end] for begin, end in pairs])


def digest_of(shards: Sequence[str], seed: int) -> str:
    """Names a shuffle: whether what lies in the work directory belongs to it."""
    return hashlib.sha256(repr((tuple(shards), seed)).encode()).hexdigest()
