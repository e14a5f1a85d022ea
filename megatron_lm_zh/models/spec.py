"""The layer spec: Transformer Engine's where the device has it, else the local one with our attention and norm."""

from __future__ import annotations

from dataclasses import replace

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_lm_zh.models.attention import SdpaCoreAttention
from megatron_lm_zh.models.norm import RMSNorm
from megatron_lm_zh.runtime.device import Device


def layer_spec(device: Device) -> ModuleSpec:
    """The spec of one decoder layer. Whatever the spec, a checkpoint has Transformer Engine's parameter names."""
    if device.transformer_engine:
        return get_gpt_layer_with_transformer_engine_spec()
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    attention = spec.submodules.self_attention
    attention = replace(attention, submodules=replace(attention.submodules, core_attention=SdpaCoreAttention))
    submodules = replace(spec.submodules, input_layernorm=RMSNorm, pre_mlp_layernorm=RMSNorm, self_attention=attention)
    return replace(spec, submodules=submodules)


def block_spec(config: TransformerConfig, device: Device) -> ModuleSpec | TransformerBlockSubmodules:
    """The spec of this pipeline stage's layers and of the final norm."""
    layer = layer_spec(device)
    if device.transformer_engine:
        return layer  # megatron-core then takes Transformer Engine's final norm by itself
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)
