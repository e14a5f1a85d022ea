"""The Mixtral family: Llama with a mixture of experts in every layer (Jiang et al. 2024)."""

from __future__ import annotations

from megatron_lm_zh.families.base import EXPERTS, Family

MIXTRAL = Family(
    name="mixtral",
    about="Mixtral 8x7B and 8x22B",
    varies=(*EXPERTS, "window_size"),
    needs=("num_moe_experts",),
)
