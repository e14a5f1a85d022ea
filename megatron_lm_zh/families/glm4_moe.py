"""The GLM-4.5 family: grouped queries rotated by half, DeepSeek-V3's router and experts, multi-token prediction.

GLM-4.5 Team 2025, arXiv:2508.06471.
"""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import EXPERTS, ConfigRow, Family, FixedRow, HuggingFace

GLM4_MOE = Family(
    name="glm4_moe",
    about="GLM-4.5, GLM-4.5-Air, GLM-4.6",
    architecture={
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_dtype": "fp32",
    },
    varies=(
        *EXPERTS,
        "moe_shared_expert_intermediate_size",
        "moe_router_num_groups",
        "moe_router_group_topk",
        "moe_router_topk_scaling_factor",
        "add_qkv_bias",
        "qk_layernorm",
        "rotary_percent",
        "rope_scaling",
        "mtp_num_layers",
    ),
    needs=("num_moe_experts", "moe_shared_expert_intermediate_size"),
    huggingface=HuggingFace(
        model_type="glm4_moe",
        architecture="Glm4MoeForCausalLM",
        weights=(
            *rows.EMBEDDINGS,
            *rows.ATTENTION,
            *rows.GATED_MLP,
            *rows.EXPERTS,
            rows.EXPERT_BIAS,
            *rows.SHARED_EXPERTS,
            *rows.MTP,
        ),
        copies=rows.MTP_COPIES,
        config=(
            *rows.SIZES,
            *rows.GROUPED_HEADS,
            *rows.TRAINED_WITH,
            ConfigRow("layernorm_epsilon", ("rms_norm_eps",), default=1e-5),
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=131072),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), op="untied"),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
            ConfigRow(
                "rotary_percent", ("partial_rotary_factor", "rope_parameters.partial_rotary_factor"), default=0.5
            ),
            ConfigRow("add_qkv_bias", ("attention_bias",), default=False),
            ConfigRow("qk_layernorm", ("use_qk_norm",), default=False),
            ConfigRow("num_moe_experts", ("n_routed_experts",), default=128),
            ConfigRow("moe_router_topk", ("num_experts_per_tok",), op="normalised_topk", default=8),
            rows.EXPERT_WIDTH,
            rows.DENSE_FIRST,
            rows.SHARED_WIDTH,
            ConfigRow("moe_router_num_groups", ("n_group",), op="groups"),
            ConfigRow("moe_router_group_topk", ("topk_group",), op="chosen_groups"),
            ConfigRow("moe_router_topk_scaling_factor", ("routed_scaling_factor",), op="routed_scale"),
            rows.MTP_LAYERS,
        ),
        fixed=(
            rows.SILU,
            FixedRow("norm_topk_prob", True),
            FixedRow("quantization_config", None, written=False),
        ),
    ),
)
