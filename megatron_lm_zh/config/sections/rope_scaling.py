"""How rotary position embeddings are stretched to longer sequences: one frozen class for each kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LinearScaling:
    """Positions are divided by a factor (position interpolation, Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    """Which scaling."""
    factor: float = Field(gt=0)
    """How many times longer sequences become."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Llama3Scaling:
    """Low frequencies are divided by a factor, high ones stay, those between are blended (Llama 3.1, 2024)."""

    kind: Literal["llama3"] = "llama3"
    """Which scaling."""
    factor: float = Field(default=8.0, gt=0)
    """How many times longer sequences become."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """Wavelengths above original_max_position_embeddings / this are divided by the factor."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """Wavelengths below original_max_position_embeddings / this stay."""
    original_max_position_embeddings: int = Field(default=8192, gt=0)
    """Length the model was first trained on."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): as llama3 in spirit, with attention scores scaled as well."""

    kind: Literal["yarn"] = "yarn"
    """Which scaling."""
    factor: float = Field(gt=0)
    """How many times longer sequences become."""
    original_max_position_embeddings: int = Field(gt=0)
    """Length the model was first trained on."""
    beta_fast: float = Field(default=32.0, gt=0)
    """Channels that turn more often than this over the original length stay."""
    beta_slow: float = Field(default=1.0, gt=0)
    """Channels that turn less often than this over the original length are divided by the factor."""
    mscale: float | None = Field(default=None, ge=0)
    """Scores are multiplied by the square of m(mscale) / m(mscale_all_dim), m(x) = 0.1 x ln(factor) + 1, or of m(1)
    where either is null."""
    mscale_all_dim: float | None = Field(default=None, ge=0)
    """See mscale (DeepSeek sets both)."""
    truncate: bool = True
    """Round the first and last of the blended channels to whole ones."""


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="kind")]
