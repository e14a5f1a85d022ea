"""The GLM-4 family: half of each head's channels are rotated, as pairs of neighbours; gate and up are one tensor.

GLM team 2024, arXiv:2406.12793. In transformers its model type is `glm`; `glm4` is GLM-4-0414's (glm4_0414.py).
"""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, HuggingFace, WeightRow

TABLES = HuggingFace(
    model_type="glm",
    architecture="GlmForCausalLM",
    weights=(
        *rows.EMBEDDINGS,
        rows.INPUT_NORM,
        replace(rows.QKV, op="neighbours_qkv"),
        replace(rows.QKV_BIAS, op="neighbours_qkv"),
        rows.OUTPUT_PROJECTION,
        rows.MLP_NORM,
        WeightRow(
            "{block}mlp.linear_fc1.weight",
            (rows.LAYER + "mlp.gate_up_proj.weight",),
            shape=("gate_up_size", "hidden_size"),
            shard_axis=0,
            stands="dense",
        ),
        rows.DOWN,
    ),
    config=(
        *rows.with_defaults(rows.SHAPE, num_query_groups=2, kv_channels=128, layernorm_epsilon=1.5625e-07),
        ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=131072),
        ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
        rows.ROPE_BASE,
        ConfigRow("rotary_percent", ("partial_rotary_factor", "rope_parameters.partial_rotary_factor"), default=0.5),
        ConfigRow("add_qkv_bias", ("attention_bias",), default=True),
    ),
    fixed=(rows.SILU, *rows.NO_SCALING, rows.UNQUANTIZED),
    hf_ignored=(rows.INV_FREQ,),
)

GLM4 = Family(
    name="glm4",
    about="GLM-4 9B of 2024, whose model type is glm; not GLM-4-0414",
    architecture={"add_qkv_bias": True, "rotary_percent": 0.5},
    varies=("add_qkv_bias", "rotary_percent"),
    huggingface=TABLES,
)
