"""The Qwen2-MoE family: biases in queries, keys and values, and a shared expert behind a gate of its own (2024)."""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import EXPERTS, ConfigRow, Family, FixedRow, HuggingFace, WeightRow

_SHARED = rows.LAYER + "mlp.shared_expert."

QWEN2_MOE = Family(
    name="qwen2_moe",
    about="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    architecture={"add_qkv_bias": True, "moe_shared_expert_gate": True, "moe_router_pre_softmax": True},
    varies=(*EXPERTS, "moe_shared_expert_intermediate_size", "moe_router_pre_softmax", "rope_scaling"),
    needs=("num_moe_experts", "moe_shared_expert_intermediate_size"),
    huggingface=HuggingFace(
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        weights=(
            *rows.EMBEDDINGS,
            *rows.ATTENTION,
            *rows.GATED_MLP,
            *rows.EXPERTS,
            replace(rows.SHARED_GATE_UP, hf=(_SHARED + "gate_proj.weight", _SHARED + "up_proj.weight")),
            replace(rows.SHARED_DOWN, hf=(_SHARED + "down_proj.weight",)),
            WeightRow(
                "{block}mlp.shared_experts.gate_weight",
                (rows.LAYER + "mlp.shared_expert_gate.weight",),
                shape=("one", "hidden_size"),
                stands="experts",
            ),
        ),
        config=(
            *rows.SHAPE,
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=32768),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            rows.ROPE_BASE,
            rows.ROPE_SCALING,
            ConfigRow("num_moe_experts", ("num_experts",), default=60),
            ConfigRow("moe_router_topk", ("num_experts_per_tok",), default=4),
            rows.EXPERT_WIDTH,
            rows.SPARSE_STEP,
            rows.NOT_NORMALISED,
            ConfigRow("moe_shared_expert_intermediate_size", ("shared_expert_intermediate_size",), default=5632),
        ),
        fixed=(
            rows.SILU,
            FixedRow("qkv_bias", True),
            FixedRow("use_sliding_window", False),
            *rows.PLAIN,
        ),
    ),
)
