"""The GLM-4-0414 family: GLM-4 with a norm behind attention and one behind the MLP, before each is added to the stream.

In transformers its model type is `glm4`, and its `post_attention_layernorm` is the norm before the MLP.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import Family, WeightRow
from megatron_lm_zh.families.glm4 import GLM4, TABLES

GLM4_0414 = Family(
    name="glm4_0414",
    about="GLM-4-9B-0414, GLM-4-32B-0414, GLM-Z1",
    architecture={**GLM4.architecture, "sandwich_norm": True},
    varies=GLM4.varies,
    huggingface=replace(
        TABLES,
        model_type="glm4",
        architecture="Glm4ForCausalLM",
        weights=(
            *TABLES.weights,
            WeightRow(
                "{block}self_attention.linear_proj.post_layernorm.weight",
                (rows.LAYER + "post_self_attn_layernorm.weight",),
                shape=("hidden_size",),
                stands="layers",
            ),
            WeightRow(
                "{block}mlp.linear_fc2.post_layernorm.weight",
                (rows.LAYER + "post_mlp_layernorm.weight",),
                shape=("hidden_size",),
                stands="dense",
            ),
        ),
    ),
)
