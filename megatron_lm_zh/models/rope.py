"""Rotary position embedding in one pass a half, for machines without Transformer Engine's fused one."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings import rope_utils
from torch import Tensor


class _Rotation(torch.autograd.Function):
    """Turns the pairs (x[i], x[i + d/2]) by an angle; the gradient is turned back by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def rotate(x: Tensor, angles: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary position embedding (Su et al. 2021), pairing channel i with channel i + d/2.

    Args:
        x: queries or keys, [s, b, n, d].
        angles: [s, 1, 1, d]; the second half repeats the first.
        interleaved: pairing of neighbours; must be False. The signature is that of Transformer Engine's function.

    Returns:
        [s, b, n, d].
    """
    assert not interleaved and angles.shape[-1] == x.shape[-1]
    half = angles[..., : x.shape[-1] // 2]
    return _Rotation.apply(x, half.cos().to(x.dtype), half.sin().to(x.dtype))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.empty_like(x)
    x1, x2 = x.chunk(2, dim=-1)
    y1, y2 = turned.chunk(2, dim=-1)
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=-1)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin)
    return turned


def use_as_fused_rope() -> None:
    """Gives megatron-core this rotation where it found no Transformer Engine to apply the rotation in one kernel."""
    if rope_utils.fused_apply_rotary_pos_emb is None:
        rope_utils.fused_apply_rotary_pos_emb = rotate
