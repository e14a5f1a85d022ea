"""What a checkpoint holds: weights, optimizer and random generators as megatron-core's sharded state."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.utils import unwrap_model

from megatron_lm_zh.checkpoint import fsdp
from megatron_lm_zh.checkpoint.optimizer_state import optimizer_state, restore_optimizer
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.models.fsdp import FullySharded
from megatron_lm_zh.models.initialise import FULLY_RESHARDABLE, checkpoint_metadata
from megatron_lm_zh.runtime import generators

State = dict[str, Any]


def sharding_of(config: Config) -> str:
    """How this run saves its optimizer's state; only the distributed optimizer has a choice."""
    choice = config.optim.use_distributed_optimizer and not config.ddp.use_megatron_fsdp
    return config.checkpoint.distrib_optim_sharding_type if choice else FULLY_RESHARDABLE


def model_state(model: list[torch.nn.Module]) -> State:
    """Sharded weights of each model chunk under Transformer Engine's names, whatever the layer spec.

    `_extra_state` (FP8 scaling histories) is left out: the local spec has none, and a checkpoint must load under both.
    """
    if _fully_sharded(model):
        return fsdp.model_state(model)
    return {
        f"chunk{number}": _without_extra_state(chunk.sharded_state_dict(metadata=checkpoint_metadata()))
        for number, chunk in enumerate(unwrap_model(model))
    }


def training_state(
    model: list[torch.nn.Module],
    optimizer: MegatronOptimizer,
    *,
    is_loading: bool,
    with_rng: bool,
    sharding: str = FULLY_RESHARDABLE,
) -> State:
    """Everything that a resumed run needs, as `dist_checkpointing` saves and loads it.

    Args:
        is_loading: allocates the optimizer's state so that there is something to load into.
        with_rng: include the random generators; they only fit the layout that saved them.
        sharding: how the distributed optimizer's state is cut (`checkpoint.distrib_optim_sharding_type`).
    """
    weights = model_state(model)
    if _fully_sharded(model):
        of_optimizer = fsdp.optimizer_state(model, optimizer)
    else:
        of_optimizer = optimizer_state(optimizer, weights, sharding=sharding, is_loading=is_loading)
    state: State = {"model": weights, "optimizer": of_optimizer}
    if with_rng:
        state["rng"] = _rng_object()
    return state


def restore(model: list[torch.nn.Module], optimizer: MegatronOptimizer, state: State) -> None:
    """Puts a loaded state into model, optimizer and random generators of this rank."""
    if _fully_sharded(model):
        fsdp.restore(model, optimizer, state)
    else:
        restore_model(model, state["model"])
        restore_optimizer(optimizer, state["optimizer"])
    if "rng" in state:
        generators.set_state(state["rng"])


def restore_model(model: list[torch.nn.Module], weights: State) -> None:
    """Puts loaded weights into the model of this rank."""
    if _fully_sharded(model):
        fsdp.restore_model(model, weights)
        return
    for number, chunk in enumerate(unwrap_model(model)):
        result = chunk.load_state_dict(weights[f"chunk{number}"], strict=False)
        missing = [key for key in result.missing_keys if not key.endswith("_extra_state")]
        assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)


def _fully_sharded(model: list[Any]) -> TypeGuard[list[FullySharded]]:
    return isinstance(model[0], FullySharded)


def _without_extra_state(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def _rng_object() -> ShardedObject:
    """This rank's generators, stored by its place in (pipeline, tensor, context and data)."""
    shape = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
    offset = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )
    return ShardedObject("rng_state", generators.get_state(), shape, offset, replica_id=0)
