"""Packed documents as megatron-core's layers are told of them."""

from __future__ import annotations

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


def packed_documents(bounds: Tensor, *, context_parallel: bool, device: torch.device | None = None) -> PackedSeqParams:
    """Parameters of a packed sequence whose documents must not see each other.

    Args:
        bounds: [k + 1], int32: the first position of each of k documents, and the end of the last.
        context_parallel: whether each rank holds two chunks of the whole sequence. megatron-core then expects every
            document cut into chunks of its own; told of one document it turns queries and keys by their positions in
            the whole, which leaves the same angles between them.
        device: where the layers run. Bounds on the host are moved there, and no one waits for the device.
    """
    whole = bounds[[0, -1]] if context_parallel else None
    longest = int((bounds if whole is None else whole).diff().max())
    bounds = bounds.to(device, non_blocking=True)
    whole = whole if whole is None else whole.to(device, non_blocking=True)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=whole,
        cu_seqlens_kv_padded=whole,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
