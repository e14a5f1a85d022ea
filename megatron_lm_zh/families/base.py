"""What a model family is made of: rows of data that both directions of conversion read, and no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WeightRow:
    """One megatron tensor and the Hugging Face tensors that hold the same numbers."""

    megatron: str
    """Canonical (TE-style) key; `{layer}` stands for the global layer number, counted from 0."""
    hf: tuple[str, ...]
    """Hugging Face names, in the order in which the op returns and takes them; `{layer}` as above."""
    op: str
    """Name of the bijective op between the two, one of megatron_lm_zh/convert/ops.py."""
    shape: tuple[str, ...]
    """Shape of the whole megatron tensor in named sizes (fields of megatron_lm_zh/convert/ops.py `Sizes`)."""
    shard_axis: int | None
    """Axis that tensor parallelism splits; None where every rank holds the whole tensor."""
    when: tuple[str, Any] | None = None
    """`(key of our model section, value)`: the row exists only where the config has that value."""


@dataclass(frozen=True)
class ConfigRow:
    """One key of our model section and where Hugging Face's config.json says the same."""

    ours: str
    """Key of the config's `model` section."""
    hf: tuple[str, ...]
    """Dotted paths in config.json. All are written; all that are there are read and must agree."""
    default: Any = None
    """What transformers assumes where config.json has none of them; None: our own default, or the key is required."""


@dataclass(frozen=True)
class FixedRow:
    """One key of config.json that the family holds at one value."""

    hf: str
    """Dotted path in config.json."""
    value: Any
    """The only value that converts; a config.json without the key is taken to mean it."""
    written: bool = True
    """Whether an exported config.json has the key."""


@dataclass(frozen=True)
class Family:
    """A model family: everything that conversion knows about it."""

    name: str
    """Value of `model.family`."""
    model_type: str
    """`model_type` of config.json."""
    architecture: str
    """Class name in transformers."""
    weights: tuple[WeightRow, ...]
    """Every weight of the model, once."""
    config: tuple[ConfigRow, ...]
    """Every config key that differs from model to model."""
    fixed: tuple[FixedRow, ...]
    """Every config.json key that has one value in this family."""
    hf_ignored: tuple[str, ...] = ()
    """Tensors that old Hugging Face files hold beside the weights and that follow from the config."""
