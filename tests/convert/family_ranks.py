"""What a rank of the pool does for the family tests; imports no transformers, which must not meet the CPU adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def logits_of_checkpoint(
    ranks: Any, device: Any, config: str, checkpoint: str, ids: torch.Tensor, variants: list[list[str]]
) -> list[torch.Tensor]:
    """Runs on one rank: fp32 logits [b, s, vocab] of a weights-only checkpoint under a config, for each variant of it.

    The model must have exactly the checkpoint's tensors.

    Args:
        variants: overrides of the config, one list for each answer; an empty list is the config itself.
    """
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.convert.megatron_files import MegatronWeights
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.groups import process_groups

    source = MegatronWeights(Path(checkpoint))
    configs = [load_config(config, overrides, world=1) for overrides in variants]
    answers = []
    with process_groups(configs[0], ranks, device), torch.no_grad():
        for one in configs:
            model = build_gpt(one, device)
            _take(model, source)
            model.eval()
            positions = torch.arange(ids.shape[1]).expand(ids.shape)
            answers.append(model(ids, positions, None)[..., : one.model.vocab_size].float().clone())
    return answers


def _take(model: Any, source: Any) -> None:
    from megatron_lm_zh.models.initialise import sharded_tensors

    shards = sharded_tensors(model)
    assert {shard.key for shard in shards} == source.specs.keys()
    for shard in shards:
        whole = source.read(shard.key, shard.global_offset[0] if shard.prepend_axis_num else None)
        shard.data.copy_(whole[shard.global_slice()[shard.prepend_axis_num :]])
