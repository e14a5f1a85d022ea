"""The InternLM2 family: Llama under other names, with queries, keys and values in one tensor, grouped as megatron's.

Cai et al. 2024, arXiv:2403.17297; its class comes with the model's files.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, FixedRow, HuggingFace

INTERNLM2 = Family(
    name="internlm2",
    about="InternLM2, InternLM2.5",
    huggingface=HuggingFace(
        model_type="internlm2",
        architecture="InternLM2ForCausalLM",
        weights=(
            replace(rows.WORD_EMBEDDING, hf=("model.tok_embeddings.weight",)),
            rows.FINAL_NORM,
            replace(rows.OUTPUT_LAYER, hf=("output.weight",)),
            replace(rows.INPUT_NORM, hf=(rows.LAYER + "attention_norm.weight",)),
            replace(rows.QKV, hf=(rows.LAYER + "attention.wqkv.weight",), op="identity"),
            replace(rows.OUTPUT_PROJECTION, hf=(rows.LAYER + "attention.wo.weight",)),
            replace(rows.MLP_NORM, hf=(rows.LAYER + "ffn_norm.weight",)),
            replace(rows.GATE_UP, hf=(rows.LAYER + "feed_forward.w1.weight", rows.LAYER + "feed_forward.w3.weight")),
            replace(rows.DOWN, hf=(rows.LAYER + "feed_forward.w2.weight",)),
        ),
        config=(
            *rows.SIZES,
            ConfigRow("num_query_groups", ("num_key_value_heads",)),
            ConfigRow("kv_channels", ("head_dim",), op="even_heads"),
            rows.EPSILON,
            ConfigRow("init_method_std", ("initializer_range",), default=0.02),
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=2048),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
        ),
        fixed=(rows.SILU, FixedRow("bias", False), *rows.NO_SCALING, *rows.PLAIN),
        hf_ignored=(rows.LAYER + "attention.rotary_emb.inv_freq",),
    ),
)
