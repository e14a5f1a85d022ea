"""The `megatron:` tables: what may stand in them, and their values as megatron-core's arguments."""

from __future__ import annotations

import enum
import importlib
import math
import typing
from collections.abc import Mapping
from typing import Any

from megatron_lm_zh.config.document import describe
from megatron_lm_zh.config.fields import keys_of
from megatron_lm_zh.config.megatron_fields import (
    DTYPES,
    TABLES,
    MegatronField,
    accepts,
    enum_members,
    megatron_fields,
    version_text,
)
from megatron_lm_zh.config.schema import Ddp, Kernels, Model, Optim, Parallel, Precision
from megatron_lm_zh.errors import UserError, nearest

_SECTIONS = {
    "model": Model,
    "optim": Optim,
    "ddp": Ddp,
    "precision": Precision,
    "kernels": Kernels,
    "parallel": Parallel,
}

_DTYPE = "use precision.dtype instead"
_LAYOUT = "the layout is set in the `parallel` section"
_INIT = "initialisation is set by run.seed and model.init_method_std"
_INSTALLED = "decided by what is installed; see mlzh doctor"
_UNTRIED = "this system does not build such networks"

# Fields that a section of ours sets under another name, or that must follow from it, with what to do instead.
RESERVED: dict[str, dict[str, str]] = {
    "model": {
        "tensor_model_parallel_size": "use parallel.tensor instead",
        "pipeline_model_parallel_size": "use parallel.pipeline instead",
        "virtual_pipeline_model_parallel_size": "use parallel.virtual_pipeline instead",
        "context_parallel_size": "use parallel.context instead",
        "expert_model_parallel_size": "use parallel.expert instead",
        "expert_tensor_parallel_size": "use parallel.expert_tensor instead",
        "sequence_parallel": "use parallel.sequence instead",
        **dict.fromkeys(
            (
                "hybrid_context_parallel",
                "max_seqlen_per_dp_cp_rank",
                "moe_extended_tp",
                "batch_p2p_comm",
                "variable_seq_lengths",
                "tensor_parallel_num_weight_shards",
                "gtp_weight_remat_size",
                "expert_tensor_parallel_num_weight_shards",
                "expert_gtp_weight_remat_size",
            ),
            _LAYOUT,
        ),
        **dict.fromkeys(
            ("bf16", "fp16", "params_dtype", "pipeline_dtype", "enable_autocast", "autocast_dtype"), _DTYPE
        ),
        "fp8_param": "use precision.fp8_param_gather instead",
        "fp4_param": "use precision.fp4 instead",
        "deterministic_mode": "use run.deterministic instead",
        "activation_func": "use model.activation instead",
        "gated_linear_unit": "use model.activation instead",
        **dict.fromkeys(
            (
                "layernorm_zero_centered_gamma",
                "apply_residual_connection_post_layernorm",
                "glu_linear_offset",
                "activation_func_clamp_value",
                "mtp_standalone",
                "qk_l2_norm",
                "rotary_interleaved",
                "no_rope_freq",
                "mrope_section",
                "softmax_scale",
                "softmax_type",
                "attention_output_gate",
                "experimental_attention_variant",
                "linear_attention_freq",
                "heterogeneous_block_specs",
                "is_hybrid_model",
            ),
            _UNTRIED,
        ),
        **dict.fromkeys(
            (
                "perform_initialization",
                "use_cpu_initialization",
                "init_model_with_meta_device",
                "embedding_init_method_std",
                "use_mup",
            ),
            _INIT,
        ),
        "transformer_impl": _INSTALLED,
        "calculate_per_token_loss": "the loss is always the mean over tokens",
        "moe_token_dropping": "set model.moe_expert_capacity_factor instead",
        # old names of what has a key
        "moe_enable_deepep": "use model.moe_flex_dispatcher_backend instead",
        "moe_layer_recompute": "use model.recompute_modules instead",
        "moe_router_topk_limited_devices": "use model.moe_router_group_topk instead",
        "moe_router_padding_for_fp8": "use model.megatron.moe_router_padding_for_quantization instead",
        **dict.fromkeys(("enable_cuda_graph", "external_cuda_graph"), "use model.cuda_graph_impl instead"),
    },
    "optim": {
        "min_lr": "use schedule.min_lr instead",
        **dict.fromkeys(("bf16", "fp16", "params_dtype"), _DTYPE),
        "fp8_recipe": "use precision.fp8_recipe instead",
        "overlap_param_gather": "use ddp.overlap_param_gather instead",
        "decoupled_weight_decay": "weight decay is always decoupled",
    },
    "ddp": {
        "use_distributed_optimizer": "use optim.use_distributed_optimizer instead",
        "use_custom_fsdp": "use ddp.use_megatron_fsdp instead",
        "fp8_param_gather": "use precision.fp8_param_gather instead",
    },
}

# Sections whose fields are megatron-core's under the same name, by the table that would otherwise take them.
_ELSEWHERE = {"model": ("precision", "kernels", "parallel"), "optim": ("precision",), "ddp": ()}


def check_table(table: str, values: Mapping[str, Any]) -> dict[str, UserError]:
    """What is wrong with the keys and values of `<table>.megatron`, by key; the errors carry no place yet."""
    if not values:
        return {}
    fields = megatron_fields(table)
    errors = {key: _problem(table, fields, key, value) for key, value in values.items()}
    return {key: error for key, error in errors.items() if error}


def mend_for(table: str, key: str) -> str | None:
    """What to use instead of a megatron-core field that `<table>.megatron` may not name; None if it may."""
    if key in keys_of(_SECTIONS[table]):
        return f"use {table}.{key} instead"
    for section in _ELSEWHERE[table]:
        if key in keys_of(_SECTIONS[section]):
            return f"use {section}.{key} instead"
    return RESERVED[table].get(key)


def arguments(megatron_config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A checked `megatron:` table as keyword arguments of the megatron-core class it is meant for.

    Names of number formats become torch dtypes, names of enum members become those members, and lists become tuples
    where the class wants tuples. The caller brings the class, so that this module imports neither torch nor megatron.
    """
    hints = typing.get_type_hints(megatron_config)
    return {key: _argument(hints[key], value) for key, value in values.items()}


def _problem(table: str, fields: Mapping[str, MegatronField], key: str, value: Any) -> UserError | None:
    full = f"{table}.megatron.{key}"
    if key not in fields:
        close = nearest(key, [*fields, *keys_of(_SECTIONS[table])]) or ""
        guess = mend_for(table, close) or (f"did you mean {close}?" if close else "")
        return UserError(f"{full}: {version_text()} has no such field in {TABLES[table][-1][1]}", mend=guess)
    if mend := mend_for(table, key):
        return UserError(f"{full}: not to be set here", mend=mend)
    field = fields[key]
    fits = accepts(field.annotation, value)
    if fits is None:
        return UserError(f"{full}: cannot be set in a config file; its type is {field.type_name}")
    words = enum_members(field.type_name) or (tuple(DTYPES) if "dtype" in field.type_name else ())
    if not fits or not _is_finite(value):
        expected = field.type_name + (f" ({', '.join(words)})" if words else "")
        return UserError(f"{full}: found {describe(value)}", expected=f"{expected}, as in {version_text()}")
    return None


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _argument(hint: Any, value: Any) -> Any:
    kinds = [hint, *typing.get_args(hint)]
    if isinstance(value, str) and str not in kinds:
        for kind in kinds:
            if isinstance(kind, type) and kind.__name__ == "dtype":
                return getattr(importlib.import_module(kind.__module__), DTYPES[value])
            if isinstance(kind, type) and issubclass(kind, enum.Enum):
                return kind[value]
    if isinstance(value, list) and any(typing.get_origin(kind) is tuple for kind in kinds):
        return tuple(value)
    return value
