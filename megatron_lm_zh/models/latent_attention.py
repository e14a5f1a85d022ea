"""Multi-latent attention for the local layer spec: puts two gradients right that megatron-core gets wrong under TP."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from torch import Tensor


class LatentSelfAttention(MLASelfAttention):
    """Multi-latent self-attention (DeepSeek-V2, 2024) whose gradients are the same under any tensor parallelism.

    With local layers the down-projections are split over the tensor-parallel ranks and gathered. The latents come back
    with whole gradients, the up-projections sum them. But each rank turns the shared rotary part of the keys into its
    own heads' keys: its gradient is partial, and the gather drops the other ranks' share.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not self.config.sequence_parallel:
            # finalize_model_grads sums over the ranks what is called q_layernorm, as it must where the ranks norm
            # different heads. Here all ranks norm the same latent, and each has the whole gradient already.
            for name, parameter in self.named_parameters():
                if name.startswith("q_layernorm."):
                    parameter.average_gradients_across_tp_domain = True

    def _resolve_qk_norm_config(self, submodules: MLASelfAttentionSubmodules) -> dict[str, Any]:
        """The norms and the projections after them, as the spec has them.

        megatron-core 0.19 asks here for a norm before queries that have no latent, which DeepSeek-V2-Lite has not.
        """
        names = ("linear_q_proj", "linear_q_up_proj", "linear_kv_up_proj", "q_layernorm", "kv_layernorm")
        return {name: getattr(submodules, name) for name in names}

    def get_query_key_value_tensors(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        """Queries, keys and values of this rank's heads, [s, b, n, d] or [t, n, d], and what they were made of."""
        query, key, value, *latents = super().get_query_key_value_tensors(*arguments, **options)
        if self.pg_collection.tp.size() > 1:
            own, rotary = key.split((self.config.qk_head_dim, self.config.qk_pos_emb_head_dim), dim=-1)
            shared = tensor_parallel.copy_to_tensor_model_parallel_region(rotary[..., :1, :], self.pg_collection.tp)
            key = torch.cat((own, shared.expand_as(rotary)), dim=-1)
        return query, key, value, *latents
