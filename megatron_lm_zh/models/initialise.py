"""Initial weights that do not depend on the parallel layout: each block of a global tensor has its own generator."""

from __future__ import annotations

import hashlib
import math

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel

BLOCK_ELEMENTS = 2**20
# Projections that write to the residual stream: their variance shrinks with depth (GPT-2, Radford et al. 2019). The
# names are a layer's own, so multi-token prediction's layers, every expert and the shared ones are among them.
RESIDUAL = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight", "experts.linear_fc2.weight")
EMBEDDING = "embedding."
FULLY_RESHARDABLE = "fully_reshardable"


def initialise(model: GPTModel, *, seed: int, std: float, num_layers: int, embedding_std: float | None = None) -> None:
    """Draws every matrix of `model` from N(0, std^2); vectors (norms, biases) keep their constants.

    The checkpoint's view of a parameter names it globally (layer number, expert number, gate and up halves, rows of
    the vocabulary) and says where this rank's shard lies in it. Drawing by that name and place gives each layout the
    same model.

    Args:
        model: one model chunk of this rank; with several, call it for each.
        std: standard deviation; that of the projections to the residual stream is std / sqrt(2 * num_layers).
        num_layers: decoder layers of the whole model.
        embedding_std: standard deviation of the embeddings, where it is not `std`.
    """
    drawn: set[int] = set()
    with torch.no_grad():
        for tensor in sharded_tensors(model):
            if len(tensor.global_shape) - tensor.prepend_axis_num < 2 or tensor.data is None:
                continue
            scale = std
            if tensor.key.startswith(EMBEDDING) and embedding_std is not None:
                scale = embedding_std
            elif tensor.key.endswith(RESIDUAL):
                scale = std / math.sqrt(2 * num_layers)
            _fill(tensor, seed=seed, std=scale)
            drawn.add(_address(tensor.data))
    left = [name for name, weight in model.named_parameters() if weight.dim() > 1 and _address(weight) not in drawn]
    assert not left, f"not drawn: {left}"  # a copy was filled in their place, or the checkpoint does not know them


def sharded_tensors(model: GPTModel) -> list[ShardedTensor]:
    """This rank's shards of the model's parameters; their data are views of the parameters."""
    found: list[ShardedTensor] = []
    state = model.sharded_state_dict(metadata=checkpoint_metadata())
    for value in state.values():
        built = value.build() if isinstance(value, ShardedTensorFactory) else value
        for item in built if isinstance(built, list) else [built]:
            if isinstance(item, ShardedTensor):
                found.append(item)
    return found


def checkpoint_metadata(sharding: str = FULLY_RESHARDABLE) -> dict[str, object]:
    """How megatron-core names and shards the state: layers by global number, optimizer state free of the layout.

    Args:
        sharding: how the distributed optimizer's state is cut; `dp_reshardable` keeps each rank's own shard as it is.
    """
    return {
        "non_homogeneous_layers": True,
        "singleton_local_shards": False,
        "distrib_optim_sharding_type": sharding,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _fill(tensor: ShardedTensor, *, seed: int, std: float) -> None:
    """Fills a shard of a matrix, block of rows by block of rows, drawing only the blocks that it touches.

    The axes that a key puts before the matrix (the number of the expert) choose another matrix, with draws of its own.
    """
    assert tensor.data is not None and len(tensor.global_shape) - tensor.prepend_axis_num == 2
    which = tensor.global_offset[: tensor.prepend_axis_num]
    all_rows, columns = tensor.global_shape[tensor.prepend_axis_num :]
    first_row, first_column = tensor.global_offset[tensor.prepend_axis_num :]
    rows, width = tensor.data.shape
    block_rows = max(1, BLOCK_ELEMENTS // columns)
    for block in range(first_row // block_rows, -(-(first_row + rows) // block_rows)):
        start = block * block_rows
        generator = torch.Generator(device="cpu").manual_seed(_seed_of(seed, tensor.key, *which, block))
        drawn = torch.empty(min(block_rows, all_rows - start), columns)
        drawn.normal_(0.0, std, generator=generator)
        lower, upper = max(start, first_row), min(start + drawn.shape[0], first_row + rows)
        part = drawn[lower - start : upper - start, first_column : first_column + width]
        tensor.data[lower - first_row : upper - first_row].copy_(part)


def _seed_of(seed: int, key: str, *place: int) -> int:
    text = "/".join((str(seed), key, *map(str, place)))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes seeds below 2**63


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
