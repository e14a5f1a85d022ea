"""Megatron-FSDP: weights, gradients and optimizer states cut over the data-parallel ranks (ZeRO, Rajbhandari 2020).

Each rank keeps some rows of each parameter, as a slice of one long buffer: they seldom begin or end where another
rank's do in another layout. `FullySharded` knows where they lie in the whole model, which is all that a checkpoint
needs to be the one that every other layout writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.distributed.fsdp.mcore_fsdp_adapter import FullyShardedDataParallel
from megatron.core.distributed.fsdp.src.megatron_fsdp.megatron_fsdp import MegatronFSDP
from megatron.core.utils import unwrap_model
from torch import Tensor

from megatron_lm_zh import compat
from megatron_lm_zh.models.initialise import sharded_tensors


@dataclass(frozen=True)
class Part:
    """One tensor of the checkpoint that lies in a parameter, such as the gate's half of a gated MLP."""

    tensor: ShardedTensor
    """Its name and place in the whole model, without data."""
    start: int
    """Where it begins in the parameter [elements]."""

    def rows(self, held: slice, data: Tensor, prefix: str = "") -> ShardedTensor | None:
        """The rows of this part that are in `data`, the elements `held` of the parameter; None where there are none.

        Args:
            prefix: put before the tensor's name.
        """
        shape, axis = self.tensor.local_shape, self.tensor.prepend_axis_num
        width = 1
        for size in shape[1:]:
            width *= size
        begin, end = max(held.start, self.start), min(held.stop, self.start + shape[0] * width)
        if begin >= end:
            return None
        assert (begin - self.start) % width == 0 and (end - begin) % width == 0, "rows are never cut"
        mine = data.view(-1)[begin - held.start : end - held.start].view(-1, *shape[1:])
        offset = list(self.tensor.global_offset)
        offset[axis] += (begin - self.start) // width
        return replace(
            self.tensor,
            key=prefix + self.tensor.key,
            data=mine,
            dtype=mine.dtype,
            local_shape=tuple(mine.shape),
            global_offset=tuple(offset),
            axis_fragmentations=None,  # rows are cut unevenly
            replica_id=(*self.tensor.replica_id[:-1], 0),  # no data-parallel rank holds what another one does
        )


class FullySharded(FullyShardedDataParallel):
    """A model chunk wrapped by Megatron-FSDP; options are those of FullyShardedDataParallel."""

    def __init__(self, *, module: torch.nn.Module, **options: Any) -> None:
        compat.run_fsdp_hooks(MegatronFSDP)
        parts, others = _parts(unwrap_model(module))
        super().__init__(module=module, **options)
        self._parts = parts
        self._others = others

    def weights(self) -> Iterator[ShardedTensor]:
        """This rank's rows of the weights in the format that the model computes with, and the buffers."""
        yield from self._others
        for parameter, held, group, number in self._held():
            weight = group.model_weight_buffer.get_item(number, only_shard=True)
            yield from self._rows(parameter.orig_param, held, weight)

    def states(self, name: str, state_of: Callable[[Tensor], Tensor]) -> Iterator[ShardedTensor]:
        """This rank's rows of what the optimizer keeps of each parameter, named as the distributed optimizer names it.

        Args:
            state_of: gives the state, as this rank's rows, of a parameter of the optimizer.
        """
        for parameter, held, _, _ in self._held():
            yield from self._rows(parameter.orig_param, held, state_of(parameter), f"optimizer.state.{name}.")

    @torch.no_grad()
    def take_weights(self) -> None:
        """Makes the optimizer's weights those that `weights` gives, after they were loaded."""
        for parameter, _, group, number in self._held():
            local(parameter).view(-1).copy_(group.model_weight_buffer.get_item(number, only_shard=True))
        self.spread()

    @torch.no_grad()
    def spread(self) -> None:
        """Makes the model's weights those of the optimizer, as after its step."""
        self.module.install_optimized_model_weights()
        self.start_param_sync(force_sync=True)

    def _held(self) -> Iterator[tuple[Any, slice, Any, int]]:
        """Each parameter of the optimizer with elements here: which, its group of buffers and its number in there."""
        buffer = self.param_and_grad_buffer
        for _, parameter in buffer.optimizer_named_parameters:
            group = buffer.parameter_groups[buffer.param_to_param_group[parameter.orig_param]]
            number = group.model_weight_buffer.param_idx[parameter.orig_param]
            if local(parameter).numel():
                yield parameter, parameter.megatron_fsdp_slice, group, number

    def _rows(self, original: Tensor, held: slice, data: Tensor, prefix: str = "") -> Iterator[ShardedTensor]:
        for part in self._parts[original]:
            rows = part.rows(held, data, prefix)
            if rows is not None:
                yield rows


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a DTensor; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def _parts(model: torch.nn.Module) -> tuple[dict[Tensor, list[Part]], list[ShardedTensor]]:
    """Where the checkpoint's tensors lie in the parameters of `model`, not wrapped yet; and its other tensors."""
    owners = {weight.untyped_storage().data_ptr(): weight for weight in model.parameters()}
    parts: dict[Tensor, list[Part]] = {weight: [] for weight in owners.values()}
    others = []
    for tensor in sharded_tensors(model):
        assert tensor.data is not None
        owner = owners.get(tensor.data.untyped_storage().data_ptr())
        if owner is None:
            others.append(tensor)
        else:
            assert tensor.data.is_contiguous(), f"{tensor.key} is not in one piece"
            start = tensor.data.storage_offset() - owner.storage_offset()
            parts[owner].append(Part(tensor.without_data(), start))
    return parts, others
