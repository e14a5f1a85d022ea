"""The files of a `torch_dist` checkpoint: an index that runs no code when read, and data files of many tensors."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.plan import Piece, Plan, PlannedFile, cut
from megatron_lm_zh.convert.records import record, record_length
from megatron_lm_zh.errors import UserError

METADATA = ".metadata"
COMMON = "common.pt"
"""What is no tensor, where megatron-core 0.16 wrote the checkpoint."""
COMMON_OBJECT = MetadataIndex("common_state/shard_0_1")
"""The same among the objects, where 0.19 did; it is not looked for where there is a common.pt."""
MAX_FILE_BYTES = 2_000_000_000

_DCP = "torch.distributed.checkpoint"
_INDEX_CLASSES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "builtins": frozenset({"set"}),
        "collections": frozenset({"OrderedDict", "defaultdict"}),
        "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath"}),
        "pathlib._local": frozenset({"Path", "PosixPath", "PurePosixPath"}),
        "torch": frozenset({"Size"}),
        "torch.serialization": frozenset({"_get_layout"}),
        f"{_DCP}.filesystem": frozenset({"_StorageInfo", "_StoragePrefix"}),
        f"{_DCP}.metadata": frozenset(
            {
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            }
        ),
        # megatron-core keeps the plans of all ranks in the index
        f"{_DCP}.planner": frozenset({"BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"}),
    }
)
_REFUSED_OPCODES = frozenset({"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "NEXT_BUFFER"})


def read_index(checkpoint: Path) -> Metadata:
    """The index of a checkpoint, unpickled by an allow-list: a checkpoint never runs code.

    Raises:
        UserError: it is missing, damaged, or not an index.
    """
    path = checkpoint / METADATA
    try:
        content = path.read_bytes()
        _check_opcodes(content)
        metadata = _IndexUnpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, Metadata):
            raise ValueError("not the index of a torch_dist checkpoint")
        _check_index(metadata)
    except Exception as error:  # damaged bytes make a pickle raise nearly anything
        raise UserError(f"unreadable: {str(error)[:200] or type(error).__name__}", where=str(path)) from error
    return metadata


def _check_opcodes(content: bytes) -> None:
    """Refuses what no index has, above all numbers that would make the unpickler fill the memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _REFUSED_OPCODES:
            raise ValueError(f"a pickle with {opcode.name}")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise ValueError("a pickle whose memo is larger than itself")


def _check_index(metadata: Metadata) -> None:
    """ValueError unless the parts of an index that are used are what they should be."""
    entries, stored = metadata.state_dict_metadata, metadata.storage_data
    if not isinstance(entries, dict) or not isinstance(stored, dict):
        raise ValueError("no tensors in it")
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise ValueError("a tensor without a name")
        if isinstance(entry, TensorStorageMetadata):
            chunks = entry.chunks if isinstance(entry.chunks, list) else [None]
            boxes = [box for chunk in chunks for box in (_field(chunk, "offsets"), _field(chunk, "sizes"))]
            dtype = _field(entry.properties, "dtype")
            sizes = (entry.size, *boxes)
            if not isinstance(dtype, torch.dtype) or not all(_is_size(size, len(entry.size)) for size in sizes):
                raise ValueError(f"{name[:200]!r} has no shape or no dtype")
    for index, place in stored.items():
        offset, length = _field(place, "offset"), _field(place, "length")
        if not isinstance(index, MetadataIndex) or not isinstance(_field(place, "relative_path"), str):
            raise ValueError("a place of nothing")
        if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
            raise ValueError("a place before the beginning of a file")
        if _field(place, "transform_descriptors"):
            raise ValueError("the files are compressed")


def _field(value: Any, name: str) -> Any:
    return getattr(value, name, None)


def _is_size(value: Any, axes: int) -> bool:
    return isinstance(value, tuple) and len(value) == axes and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes that an index is made of and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")


def plan_torch_dist(specs: Mapping[str, TensorSpec], split: Set[str], max_file_bytes: int) -> Plan:
    """The data files of a checkpoint.

    Args:
        specs: the tensors, by canonical key, in the order in which they stand in the files.
        split: the keys that are written part by part of their first axis.
        max_file_bytes: of one file, unless a tensor alone is larger.
    """
    parts = {
        (name, part): spec if part is None else TensorSpec((1, *spec.shape[1:]), spec.dtype)
        for name, spec in specs.items()
        for part in (range(spec.shape[0]) if name in split else (None,))
    }
    files, pieces = [], []
    for number, run in enumerate(cut(parts, max_file_bytes)):
        file, offset = f"__0_{number}.distcp", 0
        for (name, part), spec in run.items():
            length = record_length(spec)
            pieces.append(Piece(name, part, spec, file, offset, length))
            offset += length
        files.append(PlannedFile(file, offset))
    return Plan(tuple(files), tuple(pieces), record)


def write_index(directory: Path, plan: Plan, specs: Mapping[str, TensorSpec]) -> None:
    """Writes what stands beside the data files of a plan: the index, and which program reads it."""
    chunks: dict[str, list[ChunkStorageMetadata]] = {name: [] for name in specs}
    places = {}
    for piece in plan.pieces:
        offsets, sizes = box(specs[piece.key].shape, piece.part)
        chunks[piece.key].append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        places[MetadataIndex(piece.key, torch.Size(offsets))] = _StorageInfo(piece.file, piece.offset, piece.length)
    metadata = Metadata(
        {
            name: TensorStorageMetadata(TensorProperties(dtype=spec.dtype), torch.Size(spec.shape), chunks[name])
            for name, spec in specs.items()
        },
        storage_data=places,
        storage_meta=StorageMeta(),
        version=dcp.filesystem.CURRENT_DCP_VERSION,
    )
    (directory / METADATA).write_bytes(pickle.dumps(metadata))
    versions = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    common = {"common_backend": "torch", "common_backend_version": 1}
    (directory / "metadata.json").write_text(json.dumps(versions | common), encoding="utf-8")


def write_no_objects(directory: Path) -> None:
    """Writes what megatron-core asks for beside the index of a checkpoint that holds nothing but tensors."""
    torch.save({}, directory / COMMON)


def box(shape: Sequence[int], part: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and sizes of a whole tensor, or of one part of its first axis."""
    if part is None:
        return (0,) * len(shape), tuple(shape)
    return (part, *[0] * (len(shape) - 1)), (1, *shape[1:])
