"""The Llama family (Llama, Yi and models like them): RoPE, grouped queries, SwiGLU, RMSNorm, no biases."""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, FixedRow, HuggingFace

LLAMA = Family(
    name="llama",
    about="Llama, Llama 2 and 3, Yi",
    varies=("rope_scaling",),
    huggingface=HuggingFace(
        model_type="llama",
        architecture="LlamaForCausalLM",
        weights=(*rows.EMBEDDINGS, *rows.ATTENTION, *rows.GATED_MLP),
        config=(
            *rows.SHAPE,
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=2048),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
        ),
        fixed=(rows.SILU, FixedRow("attention_bias", False), FixedRow("mlp_bias", False), *rows.PLAIN),
        hf_ignored=(rows.INV_FREQ,),
    ),
)
