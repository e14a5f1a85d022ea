"""The network at the smallest sizes that two ranks on every axis can divide, with all it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.config.sections.rope_scaling import LinearScaling
from megatron_lm_zh.runtime.device import Device

HIDDEN, HEADS, CHANNELS, FFN, EXPERT_FFN, LATENT = 64, 4, 16, 128, 64, 32
SEQ_LENGTH = 32
"""Tokens: divides into two chunks for each of two context-parallel ranks, and those over two tensor-parallel ones."""
VOCABULARY = 250
"""Ids; the embedding is padded to 256 rows, so padding is part of what is compared."""
WINDOW = 7
AUX_LOSS = 0.1
"""Weight of the balancing loss: with the usual 1e-3 a wrong one would hardly show."""
INIT_STD = 0.08
"""With 0.02 at this width attention hardly changes what passes, so wrong positions or masks would hardly show."""


def small_network(model: Model, layers: int, device: Device, *, vocabulary: bool) -> Model:
    """The `model` section with `layers` layers at small sizes.

    Args:
        device: kernels and memory tricks that it lacks are off; what they compute stays.
        vocabulary: whether the ids are ours to choose.
    """
    changes = _sizes(model, layers) | _attention(model, layers) | _experts(model, layers) | _memory(model)
    if vocabulary:
        changes |= {"vocab_size": VOCABULARY, "make_vocab_size_divisible_by": 128}
    if not device.transformer_engine:
        changes |= {"moe_grouped_gemm": False, "moe_permute_fusion": False} | _without_grouped_gemm(model)
        if model.moe_token_dispatcher_type == "flex":
            changes |= {"moe_token_dispatcher_type": "alltoall"}
    if not device.fused:
        changes |= {"moe_shared_expert_overlap": False, "cuda_graph_impl": "none"}
        changes |= {"fine_grained_activation_offloading": False, "offload_modules": ()}
    return replace(model, **changes)


def _sizes(model: Model, layers: int) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "num_layers": layers,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "seq_length": SEQ_LENGTH,
        "max_position_embeddings": SEQ_LENGTH,
        "init_method_std": max(model.init_method_std, INIT_STD),
    }
    if model.mtp_num_layers is not None:
        changes["mtp_num_layers"] = min(model.mtp_num_layers, 2)
    return changes


def _attention(model: Model, layers: int) -> dict[str, Any]:
    groups = {model.num_attention_heads: HEADS, 1: 1}.get(model.num_query_groups, HEADS // 2)
    square = model.kv_channels * model.num_attention_heads == model.hidden_size
    changes: dict[str, Any] = {
        "num_attention_heads": HEADS,
        "num_query_groups": groups,
        "kv_channels": CHANNELS if square else 2 * CHANNELS,
    }
    if model.multi_latent_attention:
        changes |= {"kv_lora_rank": LATENT, "qk_head_dim": CHANNELS, "qk_pos_emb_head_dim": CHANNELS // 2}
        changes |= {"v_head_dim": CHANNELS, "q_lora_rank": None if model.q_lora_rank is None else LATENT}
    if model.window_size is not None:
        left, right = model.window_size
        changes["window_size"] = (min(left, WINDOW), right)
    if model.window_attn_skip_freq is not None:
        changes["window_attn_skip_freq"] = _pattern(model.window_attn_skip_freq, layers)
    scaling = model.rope_scaling
    if scaling is not None and not isinstance(scaling, LinearScaling):
        share = scaling.original_max_position_embeddings / model.max_position_embeddings
        original = max(1, min(SEQ_LENGTH, round(SEQ_LENGTH * share)))
        changes["rope_scaling"] = replace(scaling, original_max_position_embeddings=original)
    return changes


def _experts(model: Model, layers: int) -> dict[str, Any]:
    if model.num_moe_experts is None:
        return {}
    changes: dict[str, Any] = {"moe_layer_freq": _pattern(model.moe_layer_freq, layers)}
    chosen = min(model.moe_router_topk, 2)
    if model.moe_router_num_groups is not None:
        from_groups = min(model.moe_router_group_topk or 1, 2)
        chosen = from_groups * min(model.moe_router_topk // (model.moe_router_group_topk or 1), 2)
        changes |= {"moe_router_num_groups": 4, "moe_router_group_topk": from_groups, "num_moe_experts": 8}
    else:
        changes["num_moe_experts"] = 4
    changes |= {"moe_router_topk": chosen, "moe_ffn_hidden_size": EXPERT_FFN}
    if model.moe_aux_loss_coeff > 0:
        changes["moe_aux_loss_coeff"] = max(model.moe_aux_loss_coeff, AUX_LOSS)
    if model.moe_shared_expert_intermediate_size is not None:
        changes["moe_shared_expert_intermediate_size"] = EXPERT_FFN
    return changes


def _memory(model: Model) -> dict[str, Any]:
    return {} if model.recompute_num_layers is None else {"recompute_num_layers": 1}


def _without_grouped_gemm(model: Model) -> dict[str, Any]:
    """Recompute less the one module that only the grouped experts have."""
    modules = tuple(module for module in model.recompute_modules if module != "moe_act")
    if modules == model.recompute_modules:
        return {}
    return (
        {"recompute_modules": modules}
        if modules
        else {"recompute_granularity": None, "recompute_modules": ("core_attn",)}
    )


def _pattern(frequency: int | Sequence[int], layers: int) -> int | tuple[int, ...]:
    """Every n-th layer, or a list of as many layers with both kinds in it where there were both."""
    if isinstance(frequency, int):
        return min(frequency, 2)
    last = max(1, layers - 1)
    small = [frequency[round(layer * (len(frequency) - 1) / last)] for layer in range(layers)]
    small[0] = frequency[0]
    if set(small) != set(frequency):  # the rarer kind fell between the layers
        small[-1] = 1 - small[0]
    return tuple(small)
