"""What a checkpoint holds: weights, optimizer and random generators as megatron-core's sharded state."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.utils import unwrap_model

from megatron_lm_zh.models.initialise import checkpoint_metadata
from megatron_lm_zh.runtime import generators

State = dict[str, Any]


def model_state(model: list[torch.nn.Module]) -> State:
    """Sharded weights under Transformer Engine's names, whatever the layer spec.

    `_extra_state` (FP8 scaling histories) is left out: the local spec has none, and a checkpoint must load under both.
    """
    (chunk,) = unwrap_model(model)
    state = chunk.sharded_state_dict(metadata=checkpoint_metadata())
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def training_state(
    model: list[torch.nn.Module], optimizer: MegatronOptimizer, *, is_loading: bool, with_rng: bool
) -> State:
    """Everything that a resumed run needs, as `dist_checkpointing` saves and loads it.

    Args:
        is_loading: allocates the optimizer's state so that there is something to load into.
        with_rng: include the random generators; they only fit the layout that saved them.
    """
    weights = model_state(model)
    state: State = {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=checkpoint_metadata()),
    }
    if with_rng:
        state["rng"] = _rng_object()
    return state


def restore(model: list[torch.nn.Module], optimizer: MegatronOptimizer, state: State) -> None:
    """Puts a loaded state into model, optimizer and random generators of this rank."""
    restore_model(model, state["model"])
    # The config, not the checkpoint, says what the learning rate and its like are from here on.
    settings = [_settings(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, live in zip(optimizer.param_groups, settings, strict=True):
        group.update(live)
    if "rng" in state:
        generators.set_state(state["rng"])


def restore_model(model: list[torch.nn.Module], weights: State) -> None:
    """Puts loaded weights into the model of this rank."""
    (chunk,) = unwrap_model(model)
    result = chunk.load_state_dict(weights, strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("_extra_state")]
    assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "step")}


def _rng_object() -> ShardedObject:
    """This rank's generators, stored by its place in (pipeline, tensor, data)."""
    shape = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(),
    )
    offset = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
    )
    return ShardedObject("rng_state", generators.get_state(), shape, offset, replica_id=0)
