"""An output layer whose weight has rows of length 1, as Baichuan 2's NormHead (Yang et al. 2023, arXiv:2309.10305)."""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor
from torch.nn.functional import normalize


class NormalizedOutput(ColumnParallelLinear):
    """Logits are products with the directions of the rows alone; the parameter keeps its lengths.

    Tensor parallelism splits rows, so each rank has all it needs of its own.
    """

    def forward(self, input_: Tensor, weight: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor | None]:
        """Logits [s, b, v / t] of hidden states [s, b, h], or [s / t, b, h] with sequence parallelism.

        Args:
            weight: [v / t, h], used in place of this layer's own (the word embedding's where both are tied).
        """
        rows = self.weight if weight is None else weight
        return super().forward(input_, weight=normalize(rows, dim=1), **options)  # type: ignore[no-any-return]


def normalize_rows(layer: ColumnParallelLinear) -> None:
    """Makes a model's output layer one that scales its rows."""
    layer.__class__ = NormalizedOutput  # GPTModel gives no choice of the class; it has no attributes of its own
    # the fused kernel adds to the gradient of a parameter, and the scaled rows are none
    layer.gradient_accumulation_fusion = False
