"""The Qwen3-MoE family: many small experts, and a norm on each head's queries and keys (Qwen team 2025)."""

from __future__ import annotations

from megatron_lm_zh.families.base import EXPERTS, Family

QWEN3_MOE = Family(
    name="qwen3_moe",
    about="Qwen3-30B-A3B, Qwen3-235B-A22B",
    architecture={"qk_layernorm": True},
    varies=(*EXPERTS, "rope_scaling"),
    needs=("num_moe_experts",),
)
