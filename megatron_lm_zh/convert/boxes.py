"""Reads any box of any tensor of a `torch_dist` checkpoint, optimizer state as well as weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.megatron_files import MegatronWeights


class StoredTensors(MegatronWeights):
    """Every tensor of a checkpoint."""

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, by its key."""
        return {
            name: TensorSpec(tuple(entry.size), entry.properties.dtype)
            for name, entry in self.metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def chunks(self, name: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Offsets and sizes of the parts that ranks wrote of a tensor."""
        return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in self._entry(name).chunks]

    def read_box(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The numbers from `offsets` on, as many as `sizes` says: a view of a file where one part has them all."""
        wanted = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
        tensor = torch.empty(tuple(sizes), dtype=self.specs[name].dtype)
        for chunk in self._entry(name).chunks:
            shared = tuple(
                slice(max(axis.start, offset), min(axis.stop, offset + size))
                for axis, offset, size in zip(wanted, chunk.offsets, chunk.sizes, strict=True)
            )
            if any(axis.start >= axis.stop for axis in shared):
                continue
            found = self._part_of(name, self.specs[name], shared, chunk)
            if shared == wanted:
                return found
            tensor[tuple(slice(s.start - o, s.stop - o) for s, o in zip(shared, offsets, strict=True))] = found
        return tensor
