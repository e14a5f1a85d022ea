"""The DeepSeek-V2 family: latent attention, shared experts, a softmax over all experts that is not normalised again.

DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434. A group of experts is as good as its best one; V2-Lite has no groups.
"""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import EXPERTS, MLA, ConfigRow, Family, FixedRow, HuggingFace

DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    about="DeepSeek-V2, DeepSeek-Coder-V2 and their Lite models",
    architecture={
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "moe_router_pre_softmax": True,
        "moe_router_group_score": "max",
        "moe_router_dtype": "fp32",
    },
    varies=(
        *MLA,
        *EXPERTS,
        "moe_shared_expert_intermediate_size",
        "moe_router_num_groups",
        "moe_router_group_topk",
        "moe_router_topk_scaling_factor",
        "rope_scaling",
    ),
    needs=("num_moe_experts", "moe_shared_expert_intermediate_size"),
    huggingface=HuggingFace(
        model_type="deepseek_v2",
        architecture="DeepseekV2ForCausalLM",
        weights=(
            *rows.EMBEDDINGS,
            *rows.LATENT_ATTENTION,
            *rows.GATED_MLP,
            *rows.EXPERTS,
            *rows.SHARED_EXPERTS,
        ),
        config=(
            *rows.SIZES,
            rows.EPSILON,
            *rows.TRAINED_WITH,
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=2048),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.LATENT_ROPE_SCALING,
            *rows.LATENT_SIZES,
            ConfigRow("num_moe_experts", ("n_routed_experts",), default=64),
            ConfigRow("moe_router_topk", ("num_experts_per_tok",)),
            rows.EXPERT_WIDTH,
            rows.DENSE_FIRST,
            rows.SHARED_WIDTH,
            ConfigRow("moe_router_num_groups", ("topk_method", "n_group"), op="greedy_groups"),
            ConfigRow("moe_router_group_topk", ("topk_group",), op="greedy_chosen_groups"),
            ConfigRow("moe_router_group_score", ("topk_method",), op="best_score"),
            ConfigRow("moe_router_topk_scaling_factor", ("routed_scaling_factor",), op="routed_scale"),
        ),
        fixed=(
            rows.SILU,
            FixedRow("attention_bias", False),
            FixedRow("mlp_bias", False),
            FixedRow("norm_topk_prob", False),
            FixedRow("scoring_func", "softmax"),
            FixedRow("moe_layer_freq", 1),
            *rows.PLAIN,
        ),
    ),
)
