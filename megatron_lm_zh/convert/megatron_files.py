"""Megatron's side: finds a checkpoint and reads its `torch_dist` weights, with no process group and no model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.mapped import mapped
from megatron_lm_zh.convert.records import find_record
from megatron_lm_zh.convert.torch_dist import box, read_index
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.run_directory import resolve_checkpoint

MODEL_FILE = "model.yaml"
"""The model section of a checkpoint that `from-hf` made; one that training made has config.yaml."""

_OPTIMIZER_PREFIXES = ("optimizer.", "chained_")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest complete one of a run directory; UserError if none."""
    return path if (path / MODEL_FILE).is_file() else resolve_checkpoint(path)


def is_weight(name: str) -> bool:
    """Whether a tensor of a checkpoint is a weight, and not optimizer state."""
    return not name.startswith(_OPTIMIZER_PREFIXES)


class MegatronWeights:
    """The weights of one `torch_dist` checkpoint, read one at a time, by any number of threads.

    Optimizer state and objects are passed over.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.where = str(checkpoint)

    @cached_property
    def metadata(self) -> Metadata:
        """The checkpoint's index."""
        return read_index(self.checkpoint)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every weight, by its canonical key."""
        return {
            name: TensorSpec(tuple(entry.size), entry.properties.dtype)
            for name, entry in self.metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and is_weight(name)
        }

    def check(self) -> None:
        """UserError where a file is missing or cut short, or a part of a weight was written by no rank."""
        sizes = {path.name: path.stat().st_size for path in self.checkpoint.iterdir() if path.is_file()}
        for name in self.specs:
            entry = self._entry(name)
            covered, numbers = sum(math.prod(chunk.sizes) for chunk in entry.chunks), math.prod(entry.size)
            if covered != numbers:
                raise UserError(f"{name} is not whole: {covered} of {numbers} numbers", where=self.where)
            for chunk in entry.chunks:
                self._check_chunk(name, chunk, sizes)

    def _check_chunk(self, name: str, chunk: ChunkStorageMetadata, sizes: Mapping[str, int]) -> None:
        stored = self.metadata.storage_data.get(MetadataIndex(name, chunk.offsets))
        if stored is None:
            raise UserError(f"{name} is not whole: no file has its part at {list(chunk.offsets)}", where=self.where)
        if stored.relative_path not in sizes:
            raise UserError(f"{name} is not whole: {Path(stored.relative_path).name} is missing", where=self.where)
        if sizes[stored.relative_path] < stored.offset + stored.length:
            raise UserError(f"{name} is not whole: {stored.relative_path} is cut short", where=self.where)

    def read(self, name: str, part: int | None = None) -> Tensor:
        """The tensor `name`, or `part` of its first axis: a view of its file, or put together from several pieces."""
        spec = self.specs[name]
        offsets, sizes = box(spec.shape, part)
        wanted = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
        pieces = [
            (shared, chunk)
            for chunk in self._entry(name).chunks
            if (shared := _overlap(wanted, _slices(chunk))) is not None
        ]
        if len(pieces) == 1 and pieces[0][0] == wanted:
            tensor = self._part_of(name, spec, *pieces[0])
        else:
            tensor = torch.empty(sizes, dtype=spec.dtype)
            for shared, chunk in pieces:
                place = tuple(slice(s.start - o, s.stop - o) for s, o in zip(shared, offsets, strict=True))
                tensor[place] = self._part_of(name, spec, shared, chunk)
        return tensor if part is None else tensor[0]

    def _part_of(self, name: str, spec: TensorSpec, wanted: tuple[slice, ...], chunk: ChunkStorageMetadata) -> Tensor:
        """What lies in `wanted` of one chunk, as a view of its file."""
        stored = self.metadata.storage_data[MetadataIndex(name, chunk.offsets)]
        path = self.checkpoint / stored.relative_path
        try:
            found = find_record(path, stored.offset, stored.length)
            if found.dtype != spec.dtype or found.shape != tuple(chunk.sizes):
                raise ValueError(f"{found.dtype} {list(found.shape)} where the index has {list(chunk.sizes)}")
            numbers = mapped(path, found.offset, TensorSpec((found.length // found.dtype.itemsize,), found.dtype))
            whole = numbers.as_strided(found.shape, found.stride, numbers.storage_offset() + found.first)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{name} is unreadable: {error}", where=str(path)) from error
        inner = tuple(slice(s.start - o, s.stop - o) for s, o in zip(wanted, chunk.offsets, strict=True))
        return whole[inner]

    def _entry(self, name: str) -> TensorStorageMetadata:
        entry = self.metadata.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        return entry


def _slices(chunk: ChunkStorageMetadata) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))


def _overlap(one: tuple[slice, ...], two: tuple[slice, ...]) -> tuple[slice, ...] | None:
    """What two boxes share; None where they share nothing."""
    shared = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, two, strict=True))
    return shared if all(axis.start < axis.stop for axis in shared) else None
