"""RMSNorm for the local layer spec: torch's own, marked so that sequence parallelism reduces its gradient."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich 2019) over the last dimension of [s, b, h].

    megatron-core's own wrapper refuses sequence parallelism. All that is needed for it is the mark on the weight:
    `finalize_model_grads` then sums the gradient over the tensor-parallel ranks, each of which saw a part of the
    sequence.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **options: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
