"""What a model family is made of: rows of data that both directions of conversion read, and no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

MLA = ("multi_latent_attention", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
EXPERTS = ("num_moe_experts", "moe_layer_freq", "moe_ffn_hidden_size", "moe_router_topk")
SHARED_EXPERTS = ("moe_shared_expert_intermediate_size", "moe_shared_expert_gate")
ROUTER = (
    "moe_router_score_function",
    "moe_router_pre_softmax",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_group_score",
    "moe_router_topk_scaling_factor",
    "moe_router_enable_expert_bias",
)
ARCHITECTURE = (
    "activation",
    "normalization",
    "sandwich_norm",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "normalized_output",
    "window_size",
    "window_attn_skip_freq",
    "position_embedding_type",
    "rotary_percent",
    "rope_scaling",
    *MLA,
    "mtp_num_layers",
    *EXPERTS,
    *SHARED_EXPERTS,
    *ROUTER,
)
"""Keys of the `model` section that say what a network computes, beyond the sizes that every family has."""


class Given(Enum):
    """What a condition may ask of a key beside a value."""

    SET = "any value but null and false"
    UNSET = "null or false"


Condition = tuple[str, Any]
"""A key of the `model` section and its value, or SET or UNSET."""


@dataclass(frozen=True)
class WeightRow:
    """One megatron tensor and the Hugging Face tensors that hold the same numbers.

    Names hold variables: `{block}` is the megatron prefix of a layer (`decoder.layers.7.`, or that of the layer inside
    a module of multi-token prediction), `{layer}` its Hugging Face number, `{mtp}` the number of such a module and
    `{expert}` that of an expert. Where the Hugging Face names ask for `{expert}`, megatron keeps all experts in one
    tensor [experts, ...], and a row is one of them.
    """

    megatron: str
    """Canonical (TE-style) key."""
    hf: tuple[str, ...]
    """Hugging Face names, in the order in which the op returns and takes them."""
    shape: tuple[str, ...]
    """Shape of the whole megatron tensor, or of one expert's part, in named sizes (megatron_lm_zh/convert/sizes.py)."""
    op: str = "identity"
    """Name of the bijective op between the two, one of megatron_lm_zh/convert/ops.py."""
    shard_axis: int | None = None
    """Axis that tensor parallelism splits; None where every rank holds the whole tensor."""
    stands: Literal["once", "layers", "dense", "experts", "mtp"] = "once"
    """How often: once, in every layer, in layers with a dense MLP, in layers with experts, in every MTP module. The
    layer in an MTP module is like the last decoder layer."""
    when: tuple[Condition, ...] = ()
    """The row exists only where all of these hold."""


@dataclass(frozen=True)
class CopyRow:
    """A Hugging Face tensor that repeats another one: written on export, compared on import where it is there."""

    hf: str
    """Its name, with `{layer}` for the Hugging Face number of an MTP module."""
    of: str
    """The tensor that it repeats."""


@dataclass(frozen=True)
class ConfigRow:
    """A key of our model section and where Hugging Face's config.json says the same."""

    ours: str
    """Key of the config's `model` section."""
    hf: tuple[str, ...]
    """Dotted paths in config.json. With the op `same`, all are written, and all that are there are read and must agree;
    another op says what its paths mean."""
    default: Any = None
    """What transformers assumes where config.json has none of them; None: our own default, or the key is required."""
    op: str = "same"
    """Name of the bijective op between the two, one of megatron_lm_zh/convert/config_ops.py."""


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
class HuggingFace:
    """The Hugging Face side of a family: everything that conversion knows about it."""

    model_type: str
    """`model_type` of config.json."""
    also_read: tuple[str, ...] = field(default=(), kw_only=True)
    """Other model types that say the same and are exported as `model_type`."""
    architecture: str
    """Class name in transformers."""
    weights: tuple[WeightRow, ...]
    """Every weight of the model, once."""
    config: tuple[ConfigRow, ...]
    """Every config key that differs from model to model."""
    fixed: tuple[FixedRow, ...]
    """Every config.json key that has one value in this family."""
    copies: tuple[CopyRow, ...] = ()
    """Tensors that repeat others."""
    prefix: str = field(default="", kw_only=True)
    """The base model's prefix where files exist whose names lack it, e.g. `transformer.`; it is written."""
    hf_ignored: tuple[str, ...] = ()
    """Tensors that old Hugging Face files hold beside the weights and that follow from the config."""


@dataclass(frozen=True)
class Family:
    """A model family: what its networks share, what differs from one to the next, and how it converts."""

    name: str
    """Value of `model.family`."""
    about: str
    """Which models these are."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the `model` section that this family has at other values than the schema's defaults."""
    varies: tuple[str, ...] = ()
    """Keys of ARCHITECTURE that a config of this family may set."""
    needs: tuple[str, ...] = ()
    """Keys that have no default in this family."""
    huggingface: HuggingFace | None = None
    """Its tables for conversion; None: it trains, and does not convert."""

    def architecture_of(self, name: str, otherwise: Any) -> Any:
        """This family's default of a key of the `model` section, `otherwise` where it has none of its own."""
        return self.architecture.get(name, otherwise)

    def uses(self, name: str) -> bool:
        """Whether a key of ARCHITECTURE means anything in this family; all other keys do in all families."""
        return name not in ARCHITECTURE or name in self.varies or name in self.architecture
