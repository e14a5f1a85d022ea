"""Initial weights that do not depend on the parallel layout: each block of a global tensor has its own generator."""

from __future__ import annotations

import hashlib
import math

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel

BLOCK_ELEMENTS = 2**20
# Projections that write to the residual stream: their variance shrinks with depth (GPT-2, Radford et al. 2019).
RESIDUAL = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


def initialise(model: GPTModel, *, seed: int, std: float, num_layers: int) -> None:
    """Draws every matrix of `model` from N(0, std^2); vectors keep their constants.

    The checkpoint's view of a parameter names it globally (layer number, gate and up halves, rows of the vocabulary)
    and says where this rank's shard lies in it. Drawing by that name and place gives each layout the same model.
    """
    with torch.no_grad():
        for tensor in sharded_tensors(model):
            if len(tensor.global_shape) - tensor.prepend_axis_num < 2 or tensor.data is None:
                continue
            scale = 1 / math.sqrt(2 * num_layers) if tensor.key.endswith(RESIDUAL) else 1.0
            _fill(tensor, seed=seed, std=std * scale)


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


def checkpoint_metadata() -> dict[str, object]:
    """How megatron-core names and shards the state: layers by global number, optimizer state free of the layout."""
    return {
        "non_homogeneous_layers": True,
        "singleton_local_shards": False,
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _fill(tensor: ShardedTensor, *, seed: int, std: float) -> None:
    """Fills a two-dimensional shard, block of rows by block of rows, drawing only the blocks that it touches."""
    assert tensor.prepend_axis_num == 0 and tensor.data is not None
    (_, columns), (first_row, first_column) = tensor.global_shape, tensor.global_offset
    rows, width = tensor.data.shape
    block_rows = max(1, BLOCK_ELEMENTS // columns)
    for block in range(first_row // block_rows, -(-(first_row + rows) // block_rows)):
        start = block * block_rows
        generator = torch.Generator(device="cpu").manual_seed(_seed_of(seed, tensor.key, block))
        drawn = torch.empty(min(block_rows, tensor.global_shape[0] - start), columns)
        drawn.normal_(0.0, std, generator=generator)
        lower, upper = max(start, first_row), min(start + drawn.shape[0], first_row + rows)
        part = drawn[lower - start : upper - start, first_column : first_column + width]
        tensor.data[lower - first_row : upper - first_row].copy_(part)


def _seed_of(seed: int, key: str, block: int) -> int:
    digest = hashlib.sha256(f"{seed}/{key}/{block}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes seeds below 2**63
