"""What differs between two configs, and which differences change what a resumed run computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_lm_zh.config.load import as_dict
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.families.base import MLA, SHARED_EXPERTS

# Keys that the result does not depend on, but for the order in which floating-point numbers are summed. A name that
# ends in a dot stands for all keys below it. Whatever is not listed alters the result, new keys included.
_HARMLESS = (
    "run.dir",
    "run.name",
    "run.deterministic",
    "run.startup_timeout_s",
    "run.step_timeout_s",
    "model.max_position_embeddings",
    "model.recompute_granularity",
    "model.recompute_modules",
    "model.recompute_modules.",
    "model.recompute_method",
    "model.recompute_num_layers",
    "model.distribute_saved_activations",
    "model.fine_grained_activation_offloading",
    "model.offload_modules",
    "model.offload_modules.",
    "model.cuda_graph_impl",
    "model.moe_shared_expert_overlap",
    "model.moe_token_dispatcher_type",
    "model.moe_flex_dispatcher_backend",
    "model.moe_grouped_gemm",
    "model.moe_permute_fusion",
    "parallel.",
    "kernels.",
    "data.index_cache",
    "data.valid",
    "data.valid.",
    "data.test",
    "data.test.",
    "train.micro_batch_size",
    "ddp.overlap_grad_reduce",
    "ddp.overlap_param_gather",
    "ddp.use_megatron_fsdp",
    "ddp.data_parallel_sharding_strategy",
    "checkpoint.",
    "evaluate.",
    "log.",
    "profile.",
)

# Keys that give the weights or the optimizer's state their shapes: what was saved under another value does not fit.
_SHAPE = frozenset(
    {
        "optim.optimizer",
        "optim.no_weight_decay",
        "optim.use_distributed_optimizer",
        "precision.dtype",
    }
) | frozenset(
    f"model.{name}"
    for name in (
        *MLA,
        *SHARED_EXPERTS,
        "family",
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "ffn_hidden_size",
        "vocab_size",
        "make_vocab_size_divisible_by",
        "tie_embeddings",
        "activation",
        "normalization",
        "sandwich_norm",
        "add_bias_linear",
        "add_qkv_bias",
        "qk_layernorm",
        "position_embedding_type",
        "mtp_num_layers",
        "num_moe_experts",
        "moe_layer_freq",
        "moe_ffn_hidden_size",
        "moe_router_enable_expert_bias",
    )
)

Effect = Literal["harmless", "result", "shape"]


@dataclass(frozen=True)
class Change:
    """One key whose value differs."""

    key: str
    """Dotted key, e.g. `data.train.0.path`."""
    old: Any
    """Value before; None where the key was absent."""
    new: Any
    """Value now; None where the key is absent."""
    effect: Effect
    """`harmless`; `result`: must be allowed by name; `shape`: a checkpoint cannot be loaded, whatever is allowed."""

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


def config_diff(old: Config | Mapping[str, Any], new: Config | Mapping[str, Any]) -> list[Change]:
    """Every key whose value differs, in the order of the schema; a mapping is a resolved config read back from YAML.

    The length of the run (`train.steps`, `train.tokens`) is harmless where both schedules are constant, since the
    learning rate then does not depend on it. `model.max_position_embeddings` is not where positions are learned.
    """
    before, after = (dict(_flat(as_dict(side) if isinstance(side, Config) else side)) for side in (old, new))
    keys = dict.fromkeys([*before, *after])
    return [
        Change(key, before.get(key), after.get(key), _effect(key, before, after))
        for key in keys
        if before.get(key) != after.get(key) or (key in before) != (key in after)
    ]


def alters_result(key: str) -> bool:
    """Whether another value of `key` changes what a run computes, beyond the order of floating-point sums.

    `train.steps` and `train.tokens` do, because schedules decay over the length of the run.
    """
    return not any(key.startswith(name) if name.endswith(".") else key == name for name in _HARMLESS)


def alters_shape(key: str) -> bool:
    """Whether another value of `key` makes another model or optimizer state, so that no older checkpoint fits."""
    return key in _SHAPE or key.startswith("model.moe_layer_freq.")


def _effect(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Effect:
    def both(name: str, value: str) -> bool:
        return before.get(name) == after.get(name) == value

    if key == "model.max_position_embeddings" and both("model.position_embedding_type", "learned_absolute"):
        return "shape"  # the rows of a table
    if alters_shape(key):
        return "shape"
    if key in ("train.steps", "train.tokens") and both("schedule.kind", "constant"):
        return "harmless"
    return "result" if alters_result(key) else "harmless"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their scalars; an empty list or table is a value of its own."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    children = list(items)
    if not children:
        yield path, list(value) if isinstance(value, tuple) else value
    for name, child in children:
        yield from _flat(child, f"{path}.{name}" if path else str(name))
