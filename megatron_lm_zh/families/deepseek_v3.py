"""The DeepSeek-V3 family: latent attention, shared experts, a router balanced by a bias, multi-token prediction.

DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437.
"""

from __future__ import annotations

from megatron_lm_zh.families.base import EXPERTS, MLA, ROUTER, SHARED_EXPERTS, Family

DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    about="DeepSeek-V3, DeepSeek-R1, Kimi K2",
    architecture={
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    },
    varies=(*MLA, *EXPERTS, *SHARED_EXPERTS, *ROUTER, "mtp_num_layers", "rope_scaling"),
    needs=("num_moe_experts",),
)
