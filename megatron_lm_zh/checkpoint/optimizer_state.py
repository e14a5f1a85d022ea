"""The optimizer's state as it is saved: its tensors, one step, the loss scales; the rest is the live optimizer's own.

megatron-core would save the parameter groups, too, of rank 0's chain of optimizers. The chain and its groups depend on
the layout (experts have an optimizer of their own where they are spread over ranks): a checkpoint would only fit the
layout that wrote it. And settings such as the learning rate are the config's to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase, ShardedObject
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer

from megatron_lm_zh.models.initialise import FULLY_RESHARDABLE, checkpoint_metadata

State = dict[str, Any]


def optimizer_state(optimizer: MegatronOptimizer, weights: State, *, sharding: str, is_loading: bool) -> State:
    """What of `optimizer` goes into a checkpoint; `skeleton` stays on this rank and tells where the tensors belong.

    Args:
        weights: the model's sharded state, after which the optimizer's tensors are named.
        sharding: megatron-core's `distrib_optim_sharding_type`.
        is_loading: allocate the state, so that there is something to load into.
    """
    if not is_loading:
        _allocate(optimizer)
    moved = sharding == FULLY_RESHARDABLE  # the buckets of `dp_reshardable` are saved as they lie
    with _told_apart(optimizer), _padding_kept(optimizer) if moved else contextlib.nullcontext():
        metadata = checkpoint_metadata(sharding)
        state = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=metadata)
    parts = [_without_objects(part) for part in (state.values() if _is_chain(optimizer) else [state])]
    tensors = [leaf for leaf in _leaves(parts) if isinstance(leaf, ShardedBase)]
    return {
        "step": _step(parts),
        "scalers": [part["grad_scaler"] for part in parts if "grad_scaler" in part],
        "tensors": {str(number): tensor for number, tensor in enumerate(tensors)},
        "skeleton": LocalNonpersistentObject(parts),
    }


@torch.no_grad()  # megatron-core copies into fp32 weights, which ask for gradients, without saying so
def restore_optimizer(optimizer: MegatronOptimizer, state: State) -> None:
    """Puts loaded tensors, step and loss scales into `optimizer`; every other setting stays as it is."""
    loaded = iter(range(len(state["tensors"])))

    def value_of(leaf: Any) -> Any:
        if isinstance(leaf, ShardedBase):
            return state["tensors"][str(next(loaded))]
        return leaf.unwrap() if isinstance(leaf, LocalNonpersistentObject) else leaf

    parts = dict_list_map_outplace(value_of, state["skeleton"])
    # Before format 2 a checkpoint held the groups, with the step in each of them, and no loss scales.
    step, scalers = (state["step"], state["scalers"]) if "step" in state else (_step([state]), [])
    for number, part in enumerate(parts):
        for group in _groups(part):
            if step is not None:
                group["step"] = step
        if "grad_scaler" in part and scalers:
            part["grad_scaler"] = scalers[min(number, len(scalers) - 1)]
    with _told_apart(optimizer):
        optimizer.load_state_dict(dict(enumerate(parts)) if _is_chain(optimizer) else parts[0])


def _allocate(optimizer: MegatronOptimizer) -> None:
    """Makes the state of an optimizer that has not stepped yet, as when fp16 has only overflowed: it is saved, too."""
    for part in _parts(optimizer):
        if part.optimizer is not None and part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, part.config)


@contextlib.contextmanager
def _told_apart(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Numbers the parameter groups and puts their settings back at the end.

    megatron-core finds a saved group's live one by a few settings, which groups may share: in 0.16 two that differ in
    their learning rate alone get the settings of one. `is_decoupled_lr` is of no other use.
    """
    settings = [_settings(group) for group in optimizer.param_groups]
    for number, group in enumerate(optimizer.param_groups):
        group["is_decoupled_lr"] = number
    yield
    for group, live in zip(optimizer.param_groups, settings, strict=True):
        group.update(live)


@contextlib.contextmanager
def _padding_kept(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Counts the padding at the end of each gradient bucket but the last as if it were numbers.

    To save `fully_reshardable`, megatron-core 0.16 to 0.19 puts the buckets of a buffer together without that padding,
    and then cuts the parameters out at the places that they have with it (its issue 504): where there are several
    buckets, master weights and moments would be those of other parameters.
    """
    changed = []
    for buffer in (buffer for part in _parts(optimizer) for buffer in getattr(part, "buffers", ())):
        for holder in (buffer, *buffer.buckets):
            changed.append((holder, holder.numel_unpadded))
        for bucket in buffer.buckets[:-1]:
            bucket.numel_unpadded = bucket.grad_data.numel()
        buffer.numel_unpadded = sum(bucket.numel_unpadded for bucket in buffer.buckets)
    yield
    for holder, numel in changed:
        holder.numel_unpadded = numel


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def _is_chain(optimizer: MegatronOptimizer) -> bool:
    return isinstance(optimizer, ChainedOptimizer) and len(optimizer.chained_optimizers) > 1


def _without_objects(part: State) -> State:
    """The part with what `dp_reshardable` wraps, groups and loss scale, laid open."""
    return {key: value.data if isinstance(value, ShardedObject) else value for key, value in part.items()}


def _leaves(value: Any) -> list[Any]:
    leaves: list[Any] = []
    dict_list_map_outplace(leaves.append, value)
    return leaves


def _groups(part: State) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = part.get("optimizer", part)["param_groups"]
    return groups


def _step(parts: list[State]) -> int | None:
    """Adam's step, which all parameters share; None without one. A rank's own groups may be empty and not count it."""
    steps = [int(group["step"]) for part in parts for group in _groups(part) if "step" in group]
    return max(steps, default=None)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "step")}
