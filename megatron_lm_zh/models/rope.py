"""Rotary position embedding in one pass a half, where there is no Transformer Engine to fuse it; Llama 3's scaling."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_lm_zh.config.sections.rope_scaling import Llama3Scaling, YarnScaling
from megatron_lm_zh.models.spans import chunks


class _Rotation(torch.autograd.Function):
    """Turns pairs of channels by an angle; the gradient is turned back by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin, ctx.interleaved), None, None, None


def rotate(x: Tensor, angles: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of the first r channels; the signature is Transformer Engine's.

    Args:
        x: queries or keys, [s, b, n, d].
        angles: [s, 1, 1, r], r <= d, each angle twice.
        interleaved: pairs neighbours; otherwise channel i goes with channel i + r/2.

    Returns:
        [s, b, n, d].
    """
    half = angles[..., ::2] if interleaved else angles[..., : angles.shape[-1] // 2]
    return _Rotation.apply(x, half.cos().to(x.dtype), half.sin().to(x.dtype), interleaved)


def rotate_packed(
    x: Tensor, cu_seqlens: Tensor, angles: Tensor, cp_size: int = 1, cp_rank: int = 0, interleaved: bool = False
) -> Tensor:
    """The same for packed documents, each of which counts its positions from 0.

    Args:
        x: [t, n, d], this context-parallel rank's `chunks` of the packed sequence.
        cu_seqlens: [k + 1], the first position of each of k documents, and the end of the last.
        angles: [m, 1, 1, r] for m positions, as many as the longest document has.

    Returns:
        [t, n, d].
    """
    held = chunks(len(x) * cp_size, cp_rank, cp_size)
    positions = torch.cat([torch.arange(chunk.start, chunk.stop, device=x.device) for chunk in held])
    document = torch.searchsorted(cu_seqlens, positions.to(cu_seqlens.dtype), right=True) - 1
    return rotate(x, angles[positions - cu_seqlens[document], 0], interleaved)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    turned = torch.empty_like(x)
    width = 2 * cos.shape[-1]
    turned[..., width:] = x[..., width:]
    x1, x2 = _pairs(x[..., :width], interleaved)
    y1, y2 = _pairs(turned[..., :width], interleaved)
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=-1)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin)
    return turned


def _pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and the second channels of all pairs."""
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    first, second = x.chunk(2, dim=-1)
    return first, second


def use_as_fused_rope() -> None:
    """Gives megatron-core this rotation where it found no Transformer Engine to apply the rotation in one kernel."""
    if rope_utils.fused_apply_rotary_pos_emb is None:
        rope_utils.fused_apply_rotary_pos_emb = rotate
    if rope_utils.fused_apply_rotary_pos_emb_thd is None:
        rope_utils.fused_apply_rotary_pos_emb_thd = rotate_packed


def scale_as_llama3(embedding: RotaryEmbedding, scaling: Llama3Scaling) -> None:
    """Stretches the long wavelengths of an embedding as Llama 3.1 does, before its first use.

    megatron-core has the formula, but its `rope_scaling` fixes all but the factor at Llama 3.1's numbers (1, 4, 8192).
    """
    embedding.inv_freq = embedding._apply_scaling(
        embedding.inv_freq,
        factor=scaling.factor,
        low_freq_factor=scaling.low_freq_factor,
        high_freq_factor=scaling.high_freq_factor,
        original_max_position_embeddings=scaling.original_max_position_embeddings,
    )


def set_yarn(config: TransformerConfig, scaling: YarnScaling) -> None:
    """Tells GPTModel's position_embedding_type "yarn" (Peng et al. 2023) of its numbers.

    megatron-core reads them off its config, which does not declare them; for multi-latent attention it does.
    """
    config.yarn_rotary_scaling_factor = scaling.factor
    config.yarn_original_max_position_embeddings = scaling.original_max_position_embeddings
    config.yarn_beta_fast = scaling.beta_fast
    config.yarn_beta_slow = scaling.beta_slow
    config.yarn_mscale = scaling.mscale
    config.yarn_mscale_all_dim = scaling.mscale_all_dim
    config.yarn_correction_range_round_to_int = scaling.truncate
