"""A run's first weights from a Hugging Face directory: each rank reads what it holds, tensor by tensor."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.utils import unwrap_model

from megatron_lm_zh.config.schema import Config, Model
from megatron_lm_zh.convert.engine import Conversion, Source, layer_kinds
from megatron_lm_zh.convert.hf_files import CONFIG
from megatron_lm_zh.convert.hf_source import open_hf
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.base import ARCHITECTURE
from megatron_lm_zh.families.registry import huggingface
from megatron_lm_zh.models.fsdp import FullySharded
from megatron_lm_zh.models.initialise import sharded_tensors

_FREE = frozenset({"max_position_embeddings", "init_method_std", "attention_dropout", "hidden_dropout"})
"""Keys of config.json that may differ: they say how a model was trained, not what its weights compute."""


def take_hf_weights(directory: Path, config: Config, model: list[Any], optimizer: MegatronOptimizer) -> None:
    """Puts the weights of a Hugging Face directory into this rank's model chunks and the optimizer's copy of them.

    Args:
        directory: config.json and safetensors.
        config: the run's, with model.vocab_size set.
        model: the wrapped model chunks.
        optimizer: theirs.

    Raises:
        UserError: the directory holds another model than the config describes, or is broken; names what differs.
    """
    conversion, source = conversion_for(directory, config.model)
    conversion.plan_to_megatron(source)
    steps = {(step.megatron, step.part): step for step in conversion.steps}
    shards: dict[tuple[str, int | None], list[ShardedTensor]] = defaultdict(list)
    for shard in _shards(model):
        expert = shard.global_offset[0] if shard.prepend_axis_num else None
        shards[shard.key, expert].append(shard)
    with torch.no_grad():
        for place, mine in shards.items():
            whole = conversion.to_megatron(steps[place], source)
            for shard in mine:
                shard.data.copy_(whole[shard.global_slice()[shard.prepend_axis_num :]])
    if isinstance(model[0], FullySharded):
        for chunk in model:
            chunk.take_weights()
    else:
        optimizer.reload_model_params()


def conversion_for(directory: Path, model: Model) -> tuple[Conversion, Source]:
    """How the model of a Hugging Face directory becomes the one that a config describes, and its tensors.

    Raises:
        UserError: they differ in a key that changes the result.
    """
    path = directory / CONFIG
    _, theirs, source = open_hf(directory)
    if theirs.family != model.family:
        raise UserError(
            f"a model of family {theirs.family}", where=str(path), expected=f"model.family, which is {model.family}"
        )
    tables = huggingface(theirs.family)
    theirs_key = {row.ours: row.hf[0] for row in tables.config if row.ours not in _FREE}
    for key in dict.fromkeys((*theirs_key, *ARCHITECTURE)):
        asked, found = _meant(model, key), _meant(theirs, key)
        if asked != found:
            raise UserError(
                f"{theirs_key.get(key, key)} is {found}, model.{key} {asked}",
                where=str(path),
                expected="the config's model",
                mend=f"set model.{key}={found}",
            )
    assert model.vocab_size is not None
    return Conversion.of(tables, model, model.vocab_size), source


def _meant(model: Model, key: str) -> Any:
    """The value of a key, in the same words where two values say the same."""
    if key == "moe_layer_freq":
        return [int(kind == "experts") for kind in layer_kinds(model)]
    if key == "moe_ffn_hidden_size":
        return model.moe_ffn_hidden_size or model.ffn_hidden_size
    if key == "moe_router_topk_scaling_factor":
        return model.moe_router_topk_scaling_factor or 1.0
    value = getattr(model, key)
    return list(value) if isinstance(value, tuple) else value


def _shards(model: list[Any]) -> list[ShardedTensor]:
    """This rank's pieces of the weights; their data are views of the parameters."""
    if isinstance(model[0], FullySharded):
        return [shard for chunk in model for shard in chunk.weights()]
    return [shard for chunk in unwrap_model(model) for shard in sharded_tensors(chunk)]
