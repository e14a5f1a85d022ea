"""What a checkpoint computes on some ids, layer by layer, on one rank, whatever layout trained it."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.convert.engine import Source
from megatron_lm_zh.convert.states import States, state_names
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.models.build import build_gpt
from megatron_lm_zh.models.initialise import sharded_tensors
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.runtime.groups import process_groups
from megatron_lm_zh.runtime.ranks import Ranks


def checkpoint_states(config: Config, source: Source, ids: Tensor, ranks: Ranks, device: Device) -> States:
    """Hidden states and logits of ids [b, s], on the CPU, in the precision of the config.

    Args:
        config: its model is the checkpoint's, with its vocabulary size; its layout is one rank.
        source: a checkpoint's weights.

    Raises:
        UserError: the checkpoint holds other tensors than the model has.
    """
    assert config.model.vocab_size is not None
    with process_groups(config, ranks, device), torch.no_grad():
        model = build_gpt(config, device)
        take_weights(model, source)
        model.eval()
        seen: dict[str, Tensor] = {}
        names = state_names(config.model.num_layers)
        modules = [model.embedding, *model.decoder.layers[:-1], model.decoder.final_layernorm]
        for name, module in zip(names, modules, strict=True):
            module.register_forward_hook(_keep(seen, name))
        rows = ids.to(device.torch_device)
        positions = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
        logits = model(rows, positions, None)[..., : config.model.vocab_size].float().cpu()
    return States({name: seen[name] for name in names}, logits)


def take_weights(model: GPTModel, source: Source) -> None:
    """Puts the weights of a checkpoint into a model that is whole on this rank; UserError where a tensor is missing."""
    shards = sharded_tensors(model)
    missing = sorted({shard.key for shard in shards} - source.specs.keys())
    if missing:
        raise UserError(f"no tensor {missing[0]}", where=source.where)
    for shard in shards:
        whole = source.read(shard.key, shard.global_offset[0] if shard.prepend_axis_num else None)
        shard.data.copy_(whole[shard.global_slice()[shard.prepend_axis_num :]])


def _keep(seen: dict[str, Tensor], name: str) -> Any:
    """A hook that keeps a module's output [s, b, h] as [b, s, h]."""

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        seen[name] = state.transpose(0, 1).float().cpu().clone()

    return hook
