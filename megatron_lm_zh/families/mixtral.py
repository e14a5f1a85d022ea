"""The Mixtral family: Llama with a mixture of experts in every layer (Jiang et al. 2024)."""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import EXPERTS, ConfigRow, Family, HuggingFace

_EXPERT = rows.LAYER + "block_sparse_moe.experts.{expert}."

MIXTRAL = Family(
    name="mixtral",
    about="Mixtral 8x7B and 8x22B",
    varies=(*EXPERTS, "window_size", "rope_scaling"),
    needs=("num_moe_experts",),
    huggingface=HuggingFace(
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        weights=(
            *rows.EMBEDDINGS,
            *rows.ATTENTION,
            rows.EXPERTS_NORM,
            replace(rows.ROUTER, hf=(rows.LAYER + "block_sparse_moe.gate.weight",)),
            replace(rows.EXPERT_GATE_UP, hf=(_EXPERT + "w1.weight", _EXPERT + "w3.weight")),
            replace(rows.EXPERT_DOWN, hf=(_EXPERT + "w2.weight",)),
        ),
        config=(
            *rows.SIZES_WITHOUT_MLP,
            *rows.GROUPED_HEADS,
            *rows.TRAINED_WITH,
            ConfigRow("layernorm_epsilon", ("rms_norm_eps",), default=1e-5),
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=131072),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            ConfigRow("rotary_base", ("rope_theta", "rope_parameters.rope_theta"), default=1000000),
            rows.ROPE_SCALING,
            ConfigRow("moe_ffn_hidden_size", ("intermediate_size",), op="expert_width"),
            ConfigRow("num_moe_experts", ("num_local_experts",), default=8),
            ConfigRow("moe_router_topk", ("num_experts_per_tok",), default=2),
            ConfigRow("window_size", ("sliding_window",), op="window"),
        ),
        fixed=(rows.SILU, *rows.PLAIN),
        hf_ignored=(rows.INV_FREQ,),
    ),
)
