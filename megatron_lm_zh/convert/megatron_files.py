"""Megatron's side: finds a checkpoint and reads and writes `torch_dist` weights, with no process group and no model."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.run_directory import resolve_checkpoint

METADATA = ".metadata"
MODEL_FILE = "model.yaml"
"""The model section of a checkpoint that `from-hf` made; one that training made has config.yaml."""

_OPTIMIZER_PREFIXES = ("optimizer.", "chained_")
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


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest complete one of a run directory; UserError if none."""
    return path if (path / MODEL_FILE).is_file() else resolve_checkpoint(path)


class MegatronWeights:
    """The weights of one `torch_dist` checkpoint, read one at a time; optimizer state and objects are passed over."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.where = str(checkpoint)

    @cached_property
    def metadata(self) -> Metadata:
        """The checkpoint's index, unpickled by an allow-list: a checkpoint never runs code."""
        path = self.checkpoint / METADATA
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"unreadable: {error or type(error).__name__}", where=str(path)) from error
        if not isinstance(metadata, Metadata):
            raise UserError("unreadable: not the index of a torch_dist checkpoint", where=str(path))
        return metadata

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every weight, by its canonical key."""
        return {
            name: TensorSpec(tuple(entry.size), entry.properties.dtype)
            for name, entry in self.metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith(_OPTIMIZER_PREFIXES)
        }

    def read(self, name: str, part: int | None = None) -> Tensor:
        """The tensor `name`, or `part` of its first axis, put together from the pieces that the ranks wrote."""
        self._check_parts(name)
        spec = self.specs[name]
        offsets, sizes = _box(spec.shape, part)
        tensor = torch.empty(sizes, dtype=spec.dtype)
        wanted = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        reader = _Reader(self.checkpoint, self.metadata)
        try:
            plan = LoadPlan(create_read_items_for_chunk_list(name, self._entry(name), [wanted]))
            reader.set_up_storage_reader(self.metadata, is_coordinator=True)
            reader.read_data(plan, _Into(tensor)).wait()
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{name} is unreadable: {error}", where=self.where) from error
        return tensor if part is None else tensor[0]

    def _entry(self, name: str) -> TensorStorageMetadata:
        entry = self.metadata.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        return entry

    def _check_parts(self, name: str) -> None:
        """A file that is missing or cut short, or a part that no rank wrote, would leave rows without numbers."""
        entry = self._entry(name)
        covered = sum(chunk.sizes.numel() for chunk in entry.chunks)
        if covered != entry.size.numel():
            raise UserError(f"{name} is not whole: {covered} of {entry.size.numel()} numbers", where=self.where)
        for chunk in entry.chunks:
            stored = (self.metadata.storage_data or {}).get(MetadataIndex(name, chunk.offsets))
            if stored is None:
                raise UserError(f"{name} is not whole: no file has its part at {list(chunk.offsets)}", where=self.where)
            file = self.checkpoint / stored.relative_path
            if file.parent != self.checkpoint or not file.is_file():
                raise UserError(f"{name} is not whole: {file.name} is missing", where=self.where)
            if file.stat().st_size < stored.offset + stored.length:
                raise UserError(f"{name} is not whole: {file.name} is cut short", where=self.where)


def write_weights(
    directory: Path,
    specs: Mapping[str, TensorSpec],
    compute: Callable[[str, int | None], Tensor],
    split: Set[str] = frozenset(),
) -> None:
    """Writes a weights-only `torch_dist` checkpoint that megatron-core loads at any layout.

    Args:
        directory: an empty directory.
        specs: the tensors to write, by canonical key.
        compute: gives one of them, or a part of its first axis; called once each, so that one is in memory at a time.
        split: the keys that are written part by part.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(
                {},
                # a file a tensor: the writer keeps every tensor of a file in memory until the file is done
                storage_writer=dcp.FileSystemWriter(directory, single_file_per_rank=False),
                planner=_LazyPlanner(specs, compute, split),
                no_dist=True,
            )
    except CheckpointException as error:
        cause = _cause(error)
        if isinstance(cause, UserError | OSError):
            raise cause from error
        raise UserError(f"cannot write: {cause}", where=str(directory)) from error
    torch.save({}, directory / "common.pt")
    versions = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    common = {"common_backend": "torch", "common_backend_version": 1}
    (directory / "metadata.json").write_text(json.dumps(versions | common), encoding="utf-8")


class _LazyPlanner(DefaultSavePlanner):
    """Plans from shapes alone, and asks for the data of a tensor, or of a part of it, when it is written."""

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        compute: Callable[[str, int | None], Tensor],
        split: Set[str] = frozenset(),
    ) -> None:
        super().__init__(flatten_state_dict=False)
        self._specs, self._compute, self._split = specs, compute, split

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, spec in self._specs.items():
            for part in range(spec.shape[0]) if name in self._split else (None,):
                offsets, sizes = _box(spec.shape, part)
                data = TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                    properties=TensorProperties(dtype=spec.dtype),
                    size=torch.Size(spec.shape),
                )
                index = MetadataIndex(name, data.chunk.offsets)
                items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        name = write_item.index.fqn
        part = write_item.index.offset[0] if name in self._split else None
        tensor = self._compute(name, part).contiguous()
        return tensor if part is None else tensor.unsqueeze(0)


class _Into(DefaultLoadPlanner):
    """Reads pieces into one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor = tensor

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        return narrow_tensor_by_index(self._tensor, read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass


def _box(shape: Sequence[int], part: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and sizes of a whole tensor, or of one part of its first axis."""
    if part is None:
        return (0,) * len(shape), tuple(shape)
    return (part, *[0] * (len(shape) - 1)), (1, *shape[1:])


class _Reader(dcp.FileSystemReader):
    """Reads parts by an index that is in memory already."""

    def __init__(self, checkpoint: Path, metadata: Metadata) -> None:
        super().__init__(checkpoint)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes that an index is made of and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")


def _cause(error: CheckpointException) -> BaseException:
    """What went wrong on the only rank there is; what the system said, where torch.save hid it behind its own error."""
    cause = error.failures[0][0]
    context: BaseException | None = cause
    while context is not None and not isinstance(context, OSError):
        context = context.__context__
    return context or cause
