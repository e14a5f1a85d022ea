"""The Qwen3-MoE family: many small experts, and a norm on each head's queries and keys (Qwen team 2025)."""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import EXPERTS, ConfigRow, Family, FixedRow, HuggingFace

QWEN3_MOE = Family(
    name="qwen3_moe",
    about="Qwen3-30B-A3B, Qwen3-235B-A22B",
    architecture={"qk_layernorm": True},
    varies=(*EXPERTS, "moe_router_pre_softmax", "rope_scaling"),
    needs=("num_moe_experts",),
    huggingface=HuggingFace(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        weights=(*rows.EMBEDDINGS, *rows.ATTENTION, *rows.GATED_MLP, *rows.EXPERTS),
        config=(
            *rows.SHAPE,
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=32768),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
            # transformers 4 reads the first path, transformers 5 either and writes the second
            ConfigRow("num_moe_experts", ("num_experts", "num_local_experts"), default=128),
            ConfigRow("moe_router_topk", ("num_experts_per_tok",), default=8),
            rows.EXPERT_WIDTH,
            rows.SPARSE_STEP,
            rows.NOT_NORMALISED,
        ),
        fixed=(
            rows.SILU,
            FixedRow("attention_bias", False),
            FixedRow("use_sliding_window", False),
            *rows.PLAIN,
        ),
    ),
)
