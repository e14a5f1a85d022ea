"""The config half of a family's table: our model section to config.json and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from megatron_lm_zh.config.load import as_dict
from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.config_op import ABSENT
from megatron_lm_zh.convert.config_ops import OPS
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.base import ARCHITECTURE, ConfigRow, Family
from megatron_lm_zh.families.registry import huggingface

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that config.json and generation_config.json share; null where the tokenizer has no such token."""


def to_hf_config(family: Family, model: Model, dtype: torch.dtype, special_tokens: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a model section whose vocab_size is set, in the words of transformers 4.45 and of 5.x at once.

    Raises:
        UserError: the model has something that the family's tables cannot carry.
    """
    tables = huggingface(family.name)
    plain = Model(num_layers=1, hidden_size=64, num_attention_heads=1, seq_length=1, family=model.family)
    carried = {row.ours for row in tables.config}
    for key in ARCHITECTURE:
        if key not in carried and getattr(model, key) != getattr(plain, key):
            raise UserError(f"model.{key}: the conversion of family {family.name} cannot carry it")
    if model.num_moe_experts is not None and model.moe_router_load_balancing_type == "sinkhorn":
        raise UserError("model.moe_router_load_balancing_type: sinkhorn, by which no class of transformers chooses")
    config: dict[str, Any] = {"architectures": [tables.architecture], "model_type": tables.model_type}
    plain_values = as_dict(model)
    for row in tables.config:
        for path, value in zip(row.hf, _written(row, plain_values), strict=True):
            if value is not ABSENT:
                _put(config, path, value)
    for fixed in tables.fixed:
        if fixed.written:
            _put(config, fixed.hf, fixed.value)
    name = str(dtype).removeprefix("torch.")
    config |= {key: special_tokens.get(key) for key in SPECIAL_TOKENS}
    if special_tokens.get("auto_map"):
        config["auto_map"] = special_tokens["auto_map"]
    return config | {"torch_dtype": name, "dtype": name, "use_cache": True}


def from_hf_config(family: Family, config: Mapping[str, Any], where: str) -> Model:
    """The model section of a config.json.

    Raises:
        UserError: a key is missing, or has a value that this family does not convert; the message names it.
    """
    tables = huggingface(family.name)
    for fixed in tables.fixed:
        value = _get(config, fixed.hf)
        if value is not ABSENT and value is not None and value != fixed.value:
            raise UserError(f"{fixed.hf} is {value!r}", where=where, expected=repr(fixed.value))
    values: dict[str, Any] = {}
    for row in tables.config:
        if (value := _value_of(row, config, values, where)) is not None:
            values[row.ours] = value
    values["seq_length"] = values["max_position_embeddings"]
    try:
        model: Model = TypeAdapter(Model).validate_json(json.dumps({"family": family.name, **values}))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"model.{first['loc'][0]}: {first['msg']}", where=where) from error
    if model.num_attention_heads % model.num_query_groups:
        raise UserError("num_attention_heads is no multiple of num_key_value_heads", where=where)
    return model


def _written(row: ConfigRow, model: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row puts at each of its paths."""
    if row.op == "same":
        return (model[row.ours],) * len(row.hf)
    try:
        return OPS[row.op].write(model[row.ours], model)
    except ValueError as error:
        raise UserError(str(error), expected="a model that this family's config.json can describe") from error


def _value_of(row: ConfigRow, config: Mapping[str, Any], so_far: Mapping[str, Any], where: str) -> Any:
    """What config.json says of one row; None leaves the key to our own default."""
    value = _same(row, config, where) if row.op == "same" else _by_op(row, config, so_far, where)
    if value is None and row.ours in _REQUIRED:
        raise UserError(f"no {row.hf[0]}", where=where)
    if isinstance(value, float) and row.ours in _INTEGERS:
        if not value.is_integer():
            raise UserError(f"{row.hf[0]} is {value}", where=where, expected="a whole number")
        return int(value)
    return value


def _same(row: ConfigRow, config: Mapping[str, Any], where: str) -> Any:
    found = {path: value for path in row.hf if (value := _get(config, path)) not in (ABSENT, None)}
    values = list(found.values())
    if any(value != values[0] for value in values):
        raise UserError(f"{' and '.join(found)} differ", where=where)
    return values[0] if values else row.default


def _by_op(row: ConfigRow, config: Mapping[str, Any], so_far: Mapping[str, Any], where: str) -> Any:
    try:
        value = OPS[row.op].read(tuple(_get(config, path) for path in row.hf), so_far)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(str(error), where=where, expected=f"what model.{row.ours} can say") from error
    return row.default if value is ABSENT else value


_REQUIRED = frozenset(
    {
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "ffn_hidden_size",
        "vocab_size",
        "moe_layer_freq",
        "moe_router_topk",
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
    }
)
_INTEGERS = frozenset({"rotary_base"})  # transformers writes 10000.0


def _get(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or ABSENT."""
    value: Any = config
    for word in path.split("."):
        if not isinstance(value, Mapping) or word not in value:
            return ABSENT
        value = value[word]
    return value


def _put(config: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path."""
    *sections, last = path.split(".")
    for word in sections:
        config = config.setdefault(word, {})
    known = config.get(last)
    config[last] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
