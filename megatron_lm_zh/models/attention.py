"""Core attention for the local layer spec, on torch's scaled_dot_product_attention."""

from __future__ import annotations

from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class SdpaCoreAttention(MegatronModule):
    """Causal attention that never materialises [b, n, s, s]; takes the place of megatron-core's DotProductAttention."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal, attn_mask_type
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: object | None = None,
    ) -> Tensor:
        """Attends every position to itself and those before it.

        Args:
            query: [s, b, n, d] with n query heads of this rank.
            key, value: [s, b, g, d] with g key/value heads of this rank.
            attention_mask: not read; causality is all the mask there is.

        Returns:
            [s, b, n * d].
        """
        assert packed_seq_params is None and attention_bias is None
        sequence, batch = query.shape[:2]
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n, s, d]
        dropout = self.dropout if self.training else 0.0

        def attend() -> Tensor:
            return scaled_dot_product_attention(
                query,
                key,
                value,
                dropout_p=dropout,
                is_causal=True,
                scale=self.softmax_scale,
                enable_gqa=key.shape[1] != query.shape[1],
            )

        if dropout and not self.config.sequence_parallel:
            with tensor_parallel.get_cuda_rng_tracker().fork():  # heads differ from rank to rank, so must their dropout
                context = attend()
        else:
            context = attend()
        return context.permute(2, 0, 1, 3).reshape(sequence, batch, -1)
