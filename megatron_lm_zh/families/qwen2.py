"""The Qwen2 family: Llama with biases in the projection to queries, keys and values (Qwen team 2024)."""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, HuggingFace

QWEN2 = Family(
    name="qwen2",
    about="Qwen1.5, Qwen2, Qwen2.5",
    architecture={"add_qkv_bias": True},
    varies=("window_size", "window_attn_skip_freq", "rope_scaling"),
    huggingface=HuggingFace(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        weights=(*rows.EMBEDDINGS, *rows.ATTENTION, *rows.GATED_MLP),
        config=(
            *rows.with_defaults(rows.SHAPE, num_query_groups=32),
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=32768),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
            *rows.QWEN_WINDOW,
        ),
        fixed=(rows.SILU, *rows.PLAIN),
        hf_ignored=(rows.INV_FREQ,),
    ),
)
