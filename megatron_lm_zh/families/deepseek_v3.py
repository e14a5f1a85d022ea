"""The DeepSeek-V3 family: latent attention, shared experts, a router balanced by a bias, multi-token prediction.

DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437.
"""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import (
    EXPERTS,
    MLA,
    ROUTER,
    SHARED_EXPERTS,
    ConfigRow,
    Family,
    FixedRow,
    HuggingFace,
)

DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    about="DeepSeek-V3, DeepSeek-R1, Kimi K2",
    architecture={
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_dtype": "fp32",
    },
    varies=(*MLA, *EXPERTS, *SHARED_EXPERTS, *ROUTER, "mtp_num_layers", "rope_scaling"),
    needs=("num_moe_experts",),
    huggingface=HuggingFace(
        model_type="deepseek_v3",
        also_read=("kimi_k2",),
        architecture="DeepseekV3ForCausalLM",
        weights=(
            *rows.EMBEDDINGS,
            *rows.LATENT_ATTENTION,
            *rows.GATED_MLP,
            *rows.EXPERTS,
            rows.EXPERT_BIAS,
            *rows.SHARED_EXPERTS,
            *rows.MTP,
        ),
        copies=rows.MTP_COPIES,
        config=(
            *rows.SIZES,
            rows.EPSILON,
            *rows.TRAINED_WITH,
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=4096),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), op="untied"),
            rows.ROPE_BASE,
            rows.LATENT_ROPE_SCALING,
            *rows.LATENT_SIZES,
            ConfigRow("num_moe_experts", ("n_routed_experts",), default=256),
            ConfigRow("moe_router_topk", ("num_experts_per_tok",), op="normalised_topk", default=8),
            rows.EXPERT_WIDTH,
            rows.DENSE_FIRST,
            rows.SHARED_WIDTH,
            ConfigRow("moe_router_num_groups", ("n_group",), op="groups", default=8),
            ConfigRow("moe_router_group_topk", ("topk_group",), op="chosen_groups"),
            ConfigRow("moe_router_topk_scaling_factor", ("routed_scaling_factor",), op="routed_scale", default=2.5),
            rows.MTP_LAYERS,
        ),
        fixed=(
            rows.SILU,
            FixedRow("attention_bias", False),
            FixedRow("rope_interleave", True),
            FixedRow("norm_topk_prob", True),
            FixedRow("scoring_func", "sigmoid"),
            FixedRow("topk_method", "noaux_tc"),
            FixedRow("moe_layer_freq", 1),
            *rows.PLAIN,
        ),
    ),
)
