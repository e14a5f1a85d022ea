"""The `model` section: the network, and what is kept or computed again of its activations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT
from megatron_lm_zh.config.sections.experts import NetworkWithExperts

RecomputeModule = Literal["core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts"]
OffloadModule = Literal["attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Model(NetworkWithExperts):
    """The network."""

    recompute_granularity: Literal["selective", "full"] | None = None
    """Activation recompute: `selective` redoes recompute_modules, `full` whole layers, null nothing."""
    recompute_modules: tuple[RecomputeModule, ...] = ("core_attn",)
    """With `selective`: what is computed again."""
    recompute_method: Literal["uniform", "block"] | None = None
    """With `full`: `uniform` splits all layers into chunks, `block` recomputes the first layers of a stage."""
    recompute_num_layers: int | None = Field(default=None, gt=0)
    """With `full`: layers a chunk (`uniform`) or layers recomputed in a stage (`block`)."""
    distribute_saved_activations: bool = False
    """With `full`: split what is kept over the tensor-parallel ranks."""
    fine_grained_activation_offloading: bool = False
    """Move the activations of offload_modules to the host's memory until the backward pass (GPUs)."""
    offload_modules: tuple[OffloadModule, ...] = ()
    """What is offloaded."""
    cuda_graph_impl: Literal["none", "local", "transformer_engine"] = "none"
    """Capture layers in CUDA graphs: by megatron-core (`local`) or by Transformer Engine (GPUs)."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Further fields of megatron-core's TransformerConfig, by their own names."""
