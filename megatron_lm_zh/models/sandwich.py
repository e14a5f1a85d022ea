"""Row-parallel layers with a norm of their output: Sandwich-LN (Ding et al. 2021, CogView, arXiv:2105.13290).

megatron-core's layer has norms before attention and MLP alone. What either adds to the residual stream comes out of a
row-parallel layer, so the norms behind them are made parts of those.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def sandwiched(linear: type[torch.nn.Module], norm: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """A row-parallel layer that gives the norm of its output.

    The norm is `post_layernorm`, the name that Megatron-Bridge gives Gemma's. Its weights are the same on all
    tensor-parallel ranks, as a bias is, and `sharded_state_dict` of megatron-core's layers says so of all that is no
    matrix.

    Args:
        linear: megatron-core's RowParallelLinear, or Transformer Engine's.
        norm: the class of the model's norms.
    """

    class Sandwiched(linear):  # type: ignore[misc, valid-type]
        def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **options: Any) -> None:
            super().__init__(input_size, output_size, config=config, **options)
            self.post_layernorm = norm(config=config, hidden_size=output_size, eps=config.layernorm_epsilon)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            """The norm [s, b, h], or [s / t, b, h] with sequence parallelism, of the whole output, bias included."""
            output, bias = super().forward(x)
            return self.post_layernorm(output if bias is None else output + bias), None

    Sandwiched.__name__ = linear.__name__  # by which Megatron-FSDP knows how a layer is split
    return Sandwiched
