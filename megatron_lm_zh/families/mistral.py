"""The Mistral family: Llama with a window over the last tokens, and heads of any width (Jiang et al. 2023)."""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, HuggingFace

MISTRAL = Family(
    name="mistral",
    about="Mistral 7B, Mistral Nemo, Mistral Small",
    varies=("window_size", "rope_scaling"),
    huggingface=HuggingFace(
        model_type="mistral",
        architecture="MistralForCausalLM",
        weights=(*rows.EMBEDDINGS, *rows.ATTENTION, *rows.GATED_MLP),
        config=(
            *rows.with_defaults(rows.SHAPE, num_query_groups=8),
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=131072),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
            ConfigRow("window_size", ("sliding_window",), default=(4095, 0), op="window"),
        ),
        fixed=(rows.SILU, *rows.PLAIN),
        hf_ignored=(rows.INV_FREQ,),
    ),
)
