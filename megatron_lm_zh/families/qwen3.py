"""The Qwen3 family: Llama with a norm on each head's queries and keys (Qwen team 2025)."""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, FixedRow, HuggingFace

QWEN3 = Family(
    name="qwen3",
    about="Qwen3 0.6B to 32B",
    architecture={"qk_layernorm": True},
    varies=("window_size", "window_attn_skip_freq", "rope_scaling"),
    huggingface=HuggingFace(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        weights=(*rows.EMBEDDINGS, *rows.ATTENTION, *rows.GATED_MLP),
        config=(
            *rows.with_defaults(rows.SHAPE, num_query_groups=32, kv_channels=128),
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=32768),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
            *rows.QWEN_WINDOW,
        ),
        fixed=(rows.SILU, FixedRow("attention_bias", False), *rows.PLAIN),
        hf_ignored=(rows.INV_FREQ,),
    ),
)
