"""The Baichuan family: Llama with queries, keys and values in one tensor; ALiBi in 13B; Baichuan 2's NormHead.

Yang et al. 2023, arXiv:2309.10305; its class comes with the model's files. It has no key for what differs from model
to model: 7B has max_position_embeddings and rotary positions, 13B has neither, and with Baichuan 2's 125696 ids the
rows of the output layer are scaled to length 1.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, HuggingFace

BAICHUAN = Family(
    name="baichuan",
    about="Baichuan and Baichuan 2, 7B and 13B",
    varies=("position_embedding_type", "normalized_output"),
    huggingface=HuggingFace(
        model_type="baichuan",
        architecture="BaichuanForCausalLM",
        weights=(
            *rows.EMBEDDINGS,
            rows.INPUT_NORM,
            replace(rows.QKV, hf=(rows.LAYER + "self_attn.W_pack.weight",), op="packed_qkv"),
            rows.OUTPUT_PROJECTION,
            *rows.GATED_MLP,
        ),
        config=(
            *rows.SIZES,
            ConfigRow("num_query_groups", ("num_key_value_heads",), op="no_groups"),
            ConfigRow("kv_channels", ("head_dim",), op="even_heads"),
            rows.EPSILON,
            ConfigRow("init_method_std", ("initializer_range",), default=0.02),
            ConfigRow("position_embedding_type", ("max_position_embeddings",), op="baichuan_positions"),
            ConfigRow("max_position_embeddings", ("max_position_embeddings", "model_max_length"), op="baichuan_length"),
            ConfigRow("rotary_base", ("rope_theta",), op="baichuan_base"),
            ConfigRow("normalized_output", ("norm_head", "vocab_size"), op="baichuan_head"),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
        ),
        fixed=(rows.SILU, *rows.NO_SCALING_READ, *rows.PLAIN),
        hf_ignored=(rows.INV_FREQ,),
    ),
)
