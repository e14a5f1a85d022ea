"""The Llama family (Llama, Yi and models like them): RoPE, grouped queries, SwiGLU, RMSNorm; all biases or none."""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, HuggingFace

LLAMA = Family(
    name="llama",
    about="Llama, Llama 2 and 3, Yi",
    varies=("rope_scaling", "add_bias_linear"),
    huggingface=HuggingFace(
        model_type="llama",
        architecture="LlamaForCausalLM",
        weights=(*rows.EMBEDDINGS, *rows.ATTENTION, *rows.GATED_MLP, *rows.LINEAR_BIASES),
        config=(
            *rows.SHAPE,
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=2048),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
            ConfigRow("add_bias_linear", ("attention_bias", "mlp_bias"), default=False),
        ),
        fixed=(rows.SILU, *rows.PLAIN),
        hf_ignored=(rows.INV_FREQ,),
    ),
)
