"""Norms for the local layer spec: torch's own, marked so that sequence parallelism reduces their gradients.

megatron-core's own wrapper refuses sequence parallelism. All that is needed for it is the mark on the parameters:
`finalize_model_grads` then sums their gradients over the tensor-parallel ranks, each of which saw a part of the
sequence.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich 2019) over the last dimension of [s, b, h]."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **options: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.centre = _prepare(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x, [s, b, h]."""
        return rms_norm(x, self.normalized_shape, self.weight + self.centre if self.centre else self.weight, self.eps)


class LayerNorm(torch.nn.LayerNorm):
    """Layer norm (Ba et al. 2016) over the last dimension of [s, b, h]."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **options: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.centre = _prepare(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x, [s, b, h]."""
        weight = self.weight + self.centre if self.centre else self.weight
        return layer_norm(x, self.normalized_shape, weight, self.bias, self.eps)


NORMS: dict[str, type[torch.nn.Module]] = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}
"""megatron-core's `normalization` to the norm of the local spec."""


def _prepare(norm: torch.nn.Module, config: TransformerConfig) -> float:
    """Marks the parameters; returns what is added to the weight: 1 where it is stored as its distance from there."""
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    if not config.layernorm_zero_centered_gamma:
        return 0.0
    torch.nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
    return 1.0
