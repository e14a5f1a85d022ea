"""Scores a text with a checkpoint: total nats of its tokens, on one rank, whatever layout trained it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from megatron_lm_zh.checkpoint.load import load_weights
from megatron_lm_zh.config.schema import Config, Parallel
from megatron_lm_zh.data.windows import Windows
from megatron_lm_zh.models.build import build_gpt
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.runtime.groups import process_groups
from megatron_lm_zh.runtime.ranks import Ranks


def score_checkpoint(
    config: Config, checkpoint: Path, windows: Windows, ranks: Ranks, device: Device, *, batch_size: int
) -> float:
    """Total negative log-likelihood, in nats, of every target of the windows.

    Args:
        config: the config that the checkpoint holds, with its vocabulary size.
        checkpoint: a checkpoint directory.
        batch_size: windows in one forward pass.
    """
    config = replace(config, parallel=Parallel())
    total = 0.0
    with process_groups(config, ranks, device):
        model = build_gpt(config, device)
        load_weights(checkpoint, [model])
        model.eval()
        with torch.no_grad():
            for ids, counts in windows.batches(batch_size):
                rows = torch.from_numpy(ids).to(device.torch_device)
                positions = torch.arange(windows.seq_length, device=device.torch_device).expand(len(rows), -1)
                losses = model(rows[:, :-1], positions, None, labels=rows[:, 1:])
                total += float((losses.double().cpu() * torch.from_numpy(counts)).sum())
    return total
