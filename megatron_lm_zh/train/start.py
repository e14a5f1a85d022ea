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
from megatron_lm_zh.convert.engine import Conversion
from megatron_lm_zh.convert.hf_files import CONFIG, HFWeights
from megatron_lm_zh.convert.model_config import from_hf_config
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import family_of, huggingface
from megatron_lm_zh.files import read_json
from megatron_lm_zh.models.fsdp import FullySharded
from megatron_lm_zh.models.initialise import sharded_tensors

_FREE = frozenset({"max_position_embeddings", "init_method_std", "attention_dropout"})
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
    conversion = conversion_for(directory, config.model)
    source = HFWeights(directory)
    conversion.plan_to_megatron(source)
    steps = {step.megatron: step for step in conversion.steps}
    shards: dict[str, list[ShardedTensor]] = defaultdict(list)
    for shard in _shards(model):
        shards[shard.key].append(shard)
    with torch.no_grad():
        for name, mine in shards.items():
            whole = conversion.to_megatron(steps[name], source)
            for shard in mine:
                shard.data.copy_(whole[shard.global_slice()])
    if isinstance(model[0], FullySharded):
        for chunk in model:
            chunk.take_weights()
    else:
        optimizer.reload_model_params()


def conversion_for(directory: Path, model: Model) -> Conversion:
    """How the model of a Hugging Face directory becomes the one that a config describes.

    Raises:
        UserError: they differ in a key that changes the result.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"no {CONFIG}", where=str(directory), expected="a Hugging Face model directory")
    hf_config = read_json(path)
    family = family_of(str(hf_config.get("model_type")))
    if family.name != model.family:
        raise UserError(
            f"a model of family {family.name}", where=str(path), expected=f"model.family, which is {model.family}"
        )
    tables = huggingface(family.name)
    theirs = from_hf_config(family, hf_config, str(path))
    for row in tables.config:
        asked, found = getattr(model, row.ours), getattr(theirs, row.ours)
        if row.ours not in _FREE and asked != found:
            raise UserError(
                f"{row.hf[0]} is {found}, model.{row.ours} {asked}",
                where=str(path),
                expected="the config's model",
                mend=f"set model.{row.ours}={found}",
            )
    assert model.vocab_size is not None
    return Conversion.of(tables, model, model.vocab_size)


def _shards(model: list[Any]) -> list[ShardedTensor]:
    """This rank's pieces of the weights; their data are views of the parameters."""
    if isinstance(model[0], FullySharded):
        return [shard for chunk in model for shard in chunk.weights()]
    return [shard for chunk in unwrap_model(model) for shard in sharded_tensors(chunk)]
