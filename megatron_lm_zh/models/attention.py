"""Core attention on torch's scaled_dot_product_attention, for the local layer spec and for ALiBi on any device."""

from __future__ import annotations

import contextlib

import torch
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention

from megatron_lm_zh.models.alibi import slopes, with_alibi
from megatron_lm_zh.models.spans import chunks, spans, whole_sequence


class SdpaCoreAttention(MegatronModule):
    """Causal attention that never materialises [b, n, s, s]; takes the place of megatron-core's DotProductAttention.

    Grouped queries, values narrower than keys (MLA), sliding windows, packed documents and context parallelism (every
    rank gathers all keys and values) are cut into `Span`s first: within one all that is left is causality, and where a
    window is narrower than its span, a mask of window x window.
    """

    alibi = False

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
        **channels: int,
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal, attn_mask_type
        assert cp_comm_type in (None, "all_gather"), f"this attention gathers keys and values; not {cp_comm_type}"
        assert config.softmax_type == "vanilla", config.softmax_type
        self.groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        left = config.window_size[0] if windowed else -1
        self.window = left if left >= 0 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attends every position to itself and those before it.

        Args:
            query: [s, b, n, d] with n query heads of this rank, or [t, n, d] where documents are packed; of the
                sequence, this context-parallel rank's `chunks`.
            key, value: [s, b, g, d] or [t, g, d] with g key/value heads of this rank; values may have fewer channels.
            attention_mask: not read; causality is all the mask there is.
            packed_seq_params: the documents' bounds, `cu_seqlens_q`, counted over all context-parallel ranks.

        Returns:
            [s, b, n * d], or [t, n * d] where documents are packed.
        """
        assert attention_bias is None
        packed = query.dim() == 3
        if packed:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        ranks = self.groups.cp.size()
        length = len(query) * ranks
        bounds = [0, length] if packed_seq_params is None else packed_seq_params.cu_seqlens_q.tolist()
        parts = spans(chunks(length, self.groups.cp.rank(), ranks), bounds, self.window)
        if ranks > 1:
            both = whole_sequence(torch.cat((key, value), dim=-1), self.groups.cp)
            key, value = both.split((key.shape[-1], value.shape[-1]), dim=-1)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n, s, d]
        with self._random_state():
            found = [self._attend(query[:, :, p.queries], key[:, :, p.keys], value[:, :, p.keys]) for p in parts]
        context = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        context = context.permute(2, 0, 1, 3).flatten(2)
        return context.squeeze(1) if packed else context

    def _random_state(self) -> contextlib.AbstractContextManager[None]:
        """Heads differ from rank to rank, so must their dropout; sequence parallelism has seen to it already."""
        if self.dropout and self.training and not self.config.sequence_parallel:
            return tensor_parallel.get_cuda_rng_tracker().fork()  # type: ignore[no-any-return]
        return contextlib.nullcontext()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention within a span: queries [b, n, sq, d] to keys and values [b, g, sk, d], giving [b, n, sq, d]."""
        scale = self.softmax_scale if self.softmax_scale is not None else query.shape[-1] ** -0.5
        if self.alibi:
            own = slopes(query.shape[1] * self.groups.tp.size())[self.groups.tp.rank() * query.shape[1] :]
            query, key = with_alibi(query, key, torch.tensor(own[: query.shape[1]], device=query.device), scale)
        width = value.shape[-1]
        if width < key.shape[-1]:
            value = pad(value, (0, key.shape[-1] - width))  # fused kernels want one width for all three
        rows, columns = query.shape[2], key.shape[2]
        mask = None
        if self.window is not None and columns > self.window + 1:
            mask = _window_mask(rows, columns, self.window, query.device)
        elif rows != columns:
            mask = causal_lower_right(rows, columns)
        context = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return context[..., :width]


class AlibiCoreAttention(SdpaCoreAttention):
    """The same with linear biases for positions (Press et al. 2022), which megatron-core does not have."""

    alibi = True


def _window_mask(rows: int, columns: int, window: int, device: torch.device) -> Tensor:
    """True where the last `rows` of `columns` positions see a key: at most `window` before their own. [sq, sk]."""
    seen = torch.ones(rows, columns, dtype=torch.bool, device=device)
    return seen.tril(columns - rows).triu(columns - rows - window)
