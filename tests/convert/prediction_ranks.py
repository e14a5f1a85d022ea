"""What a rank of the pool does to get the logits of multi-token prediction; imports no transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def predictions_of_checkpoint(
    ranks: Any, device: Any, config: str, checkpoint: str, ids: torch.Tensor
) -> list[torch.Tensor]:
    """Runs on one rank: fp32 logits [b, s, vocab] of each prediction module, the first of which sees the next token."""
    from family_ranks import _take

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.convert.megatron_files import MegatronWeights
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.groups import process_groups

    loaded = load_config(config, world=1)
    seen = []
    with process_groups(loaded, ranks, device), torch.no_grad():
        model = build_gpt(loaded, device)
        _take(model, MegatronWeights(Path(checkpoint)))
        model.eval()
        model.mtp.register_forward_hook(lambda module, given, hidden: seen.append(hidden))
        model(ids, torch.arange(ids.shape[1]).expand(ids.shape), None, labels=ids)
        _, *predictions = seen[0].chunk(1 + loaded.model.mtp_num_layers)
        logits = [model.output_layer(hidden)[0].transpose(0, 1) for hidden in predictions]
        return [one[..., : loaded.model.vocab_size].float().clone() for one in logits]
