"""Mixture of experts: which layers have them, how tokens find them, how their load is balanced."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT, of_family
from megatron_lm_zh.config.sections.network import Network


@dataclass(frozen=True, config=STRICT, kw_only=True)
class NetworkWithExperts(Network):
    """A network some of whose MLPs are mixtures of experts."""

    num_moe_experts: int | None = Field(default=None, gt=0)
    """Number of experts in a mixture-of-experts layer; null: every MLP is dense."""
    moe_layer_freq: int | tuple[int, ...] = 1
    """Every n-th layer has experts, or one 0/1 a layer (1: experts), e.g. [0, 1, 1, 1]."""
    moe_ffn_hidden_size: int | None = Field(default=None, gt=0)
    """Inner width of one expert. Default: ffn_hidden_size."""
    moe_shared_expert_intermediate_size: int | None = Field(default=None, gt=0)
    """Inner width of all shared experts together, which every token passes through; null: none."""
    moe_shared_expert_gate: bool = of_family("moe_shared_expert_gate", False)
    """A sigmoid gate on the shared experts' output (Qwen2-MoE)."""
    moe_shared_expert_overlap: bool = False
    """Compute the shared experts while tokens travel to theirs (GPUs; alltoall dispatcher)."""

    moe_router_topk: int = Field(default=2, gt=0)
    """Experts a token is sent to."""
    moe_router_score_function: Literal["softmax", "sigmoid"] = of_family("moe_router_score_function", "softmax")
    """What turns the router's logits into scores."""
    moe_router_pre_softmax: bool = of_family("moe_router_pre_softmax", False)
    """Softmax over all experts before the top-k is taken, rather than over the k chosen."""
    moe_router_num_groups: int | None = Field(default=None, gt=0)
    """Group-limited routing: number of groups the experts are divided into (DeepSeek-V2)."""
    moe_router_group_topk: int | None = Field(default=None, gt=0)
    """Group-limited routing: groups a token's experts may come from."""
    moe_router_group_score: Literal["sum", "max"] = of_family("moe_router_group_score", "sum")
    """Group-limited routing: a group is as good as its best moe_router_topk / moe_router_group_topk experts together
    (DeepSeek-V3), or as its best one (DeepSeek-V2)."""
    moe_router_topk_scaling_factor: float | None = Field(default=None, gt=0)
    """Factor on the chosen experts' scores."""
    moe_router_enable_expert_bias: bool = of_family("moe_router_enable_expert_bias", False)
    """Balance the load by a bias on the scores that moves after every step, without a loss (Wang et al. 2024)."""
    moe_router_bias_update_rate: float = Field(default=1e-3, gt=0)
    """How far an expert's bias moves in a step."""
    moe_router_dtype: Literal["fp32", "fp64"] | None = of_family("moe_router_dtype", None)
    """Format of the router's logits; null: the model's."""
    moe_router_load_balancing_type: Literal["aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"] = (
        "aux_loss"
    )
    """What balances the load: a loss over the micro-batch, over each sequence, over the global batch; Sinkhorn's
    assignment; or nothing (with an expert bias)."""
    moe_aux_loss_coeff: float = Field(default=0.0, ge=0)
    """Weight of the balancing loss; 1e-2 is usual."""
    moe_z_loss_coeff: float | None = Field(default=None, gt=0)
    """Weight of the router's z-loss (Zoph et al. 2022); 1e-3 is usual."""

    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex"] = "alltoall"
    """How tokens reach their experts on other ranks; `flex` needs DeepEP or HybridEP."""
    moe_flex_dispatcher_backend: Literal["deepep", "hybridep"] = "deepep"
    """Package behind the `flex` dispatcher."""
    moe_expert_capacity_factor: float | None = Field(default=None, gt=0)
    """Each expert takes at most this times an equal share of a rank's tokens and drops the rest; null: all."""
    moe_pad_expert_input_to_capacity: bool = False
    """Pad every expert's input to its capacity, so that shapes never change."""
    moe_token_drop_policy: Literal["probs", "position"] = "probs"
    """Which tokens are dropped: those of the lowest score, or the last."""
    moe_grouped_gemm: bool = False
    """Compute a rank's experts in one grouped matrix multiplication (GPUs with Transformer Engine)."""
    moe_permute_fusion: bool = False
    """Sort tokens by expert in one fused kernel (GPUs with Transformer Engine)."""
