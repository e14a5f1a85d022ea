"""The `precision` section: number formats, loss scaling, quantised matrix multiplications."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Precision:
    """Number formats."""

    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Format of weights and activations. With bf16 and fp16 the optimizer keeps fp32 master weights."""
    loss_scale: float | None = Field(default=None, gt=0)
    """fp16: a fixed loss scale; null: dynamic."""
    initial_loss_scale: float = Field(default=2.0**32, gt=0)
    """fp16: where the dynamic loss scale starts."""
    min_loss_scale: float = Field(default=1.0, gt=0)
    """fp16: the smallest dynamic loss scale."""
    loss_scale_window: int = Field(default=1000, gt=0)
    """fp16: steps without overflow after which the scale doubles."""
    hysteresis: int = Field(default=2, gt=0)
    """fp16: the overflow of this number since the scale last grew, and each after it, halves the scale."""
    fp8: Literal["hybrid", "e4m3"] | None = None
    """FP8 matrix multiplications through Transformer Engine; `hybrid` has e5m2 gradients."""
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    """How FP8 scales are found: from past maxima, per tensor now, per block of 128, or MXFP8's (see docs/optim.md for
    which GPU has which)."""
    fp8_margin: int = Field(default=0, ge=0)
    """Delayed recipe: powers of two by which scales stay below what the maximum would allow."""
    fp8_amax_history_len: int = Field(default=1024, gt=0)
    """Delayed recipe: steps of maxima kept."""
    fp8_amax_compute_algo: Literal["most_recent", "max"] = "max"
    """Delayed recipe: which of the kept maxima sets the scale."""
    fp8_param_gather: bool = False
    """Keep the weights in FP8, and gather them so with the distributed optimizer."""
    first_last_layers_bf16: bool = False
    """Keep the first and last layers' matrix multiplications in bf16."""
    num_layers_at_start_in_bf16: int = Field(default=1, ge=0)
    """How many at the start."""
    num_layers_at_end_in_bf16: int = Field(default=1, ge=0)
    """How many at the end."""
    fp4: Literal["e2m1"] | None = None
    """NVFP4 matrix multiplications through Transformer Engine (Blackwell)."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Kernels:
    """Fused kernels. null: where this machine has the kernel; true: refused where it lacks it."""

    gradient_accumulation_fusion: bool | None = None
    """Add weight gradients to the fp32 buffer inside the matrix multiplication (Transformer Engine or Apex)."""
    cross_entropy_loss_fusion: bool | None = None
    """Loss over the split vocabulary in few kernels."""
    apply_rope_fusion: bool | None = None
    """Rotary embedding in one kernel."""
    masked_softmax_fusion: bool | None = None
    """Mask and softmax in one kernel, where the attention computes its scores apart."""
    bias_activation_fusion: bool | None = None
    """Bias and activation in one kernel."""
    bias_dropout_fusion: bool | None = None
    """Bias, dropout and residual in one kernel."""
