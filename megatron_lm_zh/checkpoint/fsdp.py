"""Checkpoints of Megatron-FSDP: tensors, names and places are the distributed optimizer's; each reads the other's."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_lm_zh.models.fsdp import FullySharded, local

State = dict[str, Any]
MOMENTS = ("exp_avg", "exp_avg_sq")


def model_state(model: list[FullySharded]) -> State:
    """This rank's rows of the weights of each model chunk."""
    return {f"chunk{number}": _named(chunk.weights()) for number, chunk in enumerate(model)}


def restore_model(model: list[FullySharded], state: State) -> None:
    """Puts loaded weights alone into the model, and into the optimizer's copy of them."""
    for number, chunk in enumerate(model):
        _copy(state[f"chunk{number}"], _named(chunk.weights()))
        chunk.take_weights()


def optimizer_state(model: list[FullySharded], optimizer: MegatronOptimizer) -> State:
    """Adam's step, and this rank's rows of its fp32 weights and moments; allocates what there is not yet."""
    optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
    return {"step": _step(optimizer), "scalers": [], "tensors": _tensors(model, optimizer)}


def restore(model: list[FullySharded], optimizer: MegatronOptimizer, state: State) -> None:
    """Puts a loaded `model` and `optimizer` into this rank's.

    `dist_checkpointing` loads into the live tensors, so the optimizer's fp32 weights must not be made from the model's
    here, as `restore_model` does: the model's are made from them.
    """
    for number, chunk in enumerate(model):
        _copy(state["model"][f"chunk{number}"], _named(chunk.weights()))
    _copy(state["optimizer"]["tensors"], _tensors(model, optimizer))
    for group in optimizer.param_groups:
        if state["optimizer"]["step"] is not None:
            group["step"] = state["optimizer"]["step"]
    for chunk in model:
        chunk.spread()


def _tensors(model: list[FullySharded], optimizer: MegatronOptimizer) -> State:
    tensors: list[ShardedTensor] = []
    for chunk in model:
        tensors += chunk.states("param", local)
        for name in MOMENTS:
            tensors += chunk.states(name, partial(_moment, optimizer, name))
    return _named(tensors)


def _moment(optimizer: MegatronOptimizer, name: str, parameter: Tensor) -> Tensor:
    return local(optimizer.optimizer.state[parameter][name])


def _step(optimizer: MegatronOptimizer) -> int | None:
    return max((int(group["step"]) for group in optimizer.param_groups if "step" in group), default=None)


def _named(tensors: Iterable[ShardedTensor]) -> State:
    """By name and place: a rank may hold several pieces of one tensor."""
    return {f"{tensor.key}{list(tensor.global_offset)}": tensor for tensor in tensors}


@torch.no_grad()
def _copy(loaded: State, live: State) -> None:
    for name, tensor in live.items():
        tensor.data.copy_(loaded[name])
