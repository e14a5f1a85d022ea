"""The bijective ops between a key of our model section and its keys in config.json, each beside its inverse."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from megatron_lm_zh.convert.config_op import ABSENT, ConfigOp
from megatron_lm_zh.convert.dense_config_ops import DENSE
from megatron_lm_zh.convert.expert_config_ops import EXPERTS


def _read_rope_scaling(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(rope_scaling of transformers 4, rope_parameters of 5) to one of our kinds."""
    found = [_rope_kind(value) for value in values if value is not ABSENT and value is not None]
    if any(kind != found[0] for kind in found):
        raise ValueError("rope_scaling and rope_parameters differ")
    return (found[0] if found else None) or ABSENT


def _rope_kind(value: Mapping[str, Any]) -> dict[str, Any] | None:
    fields = {key: number for key, number in value.items() if number is not None}
    kind = fields.pop("rope_type", fields.pop("type", "default"))
    for other in ("type", "rope_theta", "partial_rotary_factor", "max_position_embeddings"):
        fields.pop(other, None)
    if kind == "default":
        return None
    if kind not in _ROPE_FIELDS:
        raise ValueError(f"rope scaling of kind {kind!r}, expected {', '.join(_ROPE_FIELDS)}")
    unknown = fields.keys() - _ROPE_FIELDS[kind]
    if unknown:
        raise ValueError(f"rope scaling {kind} with {sorted(unknown)[0]}, which megatron-core has not")
    return {"kind": kind} | {
        key: int(number) if key == "original_max_position_embeddings" else number for key, number in fields.items()
    }


def _write_rope_scaling(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value is None:
        return ABSENT, {"rope_type": "default"}
    kind = value["kind"]
    fields = {key: value[key] for key in _ROPE_FIELDS[kind] if value.get(key) is not None}
    return {"rope_type": kind, **fields}, {"rope_type": kind, **fields}


_ROPE_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    }
)


def _read_latent_rope_scaling(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """As `rope_scaling`, of which megatron-core's latent attention knows YaRN, with both mscales or neither."""
    scaling = _read_rope_scaling(values, model)
    if scaling is ABSENT:
        return ABSENT
    scaling = {key: value for key, value in scaling.items() if key not in _MSCALES or value}  # 0 says none
    _check_latent_scaling(scaling)
    return scaling


def _write_latent_rope_scaling(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value is None:
        return _write_rope_scaling(value, model)
    _check_latent_scaling(value)
    return _write_rope_scaling({key: known for key, known in value.items() if key != "truncate"}, model)


def _check_latent_scaling(scaling: Mapping[str, Any]) -> None:
    if scaling["kind"] != "yarn":
        raise ValueError(f"rope scaling of kind {scaling['kind']!r} with latent attention, expected yarn")
    if not scaling.get("truncate", True):
        raise ValueError("rope scaling yarn with truncate: false, which megatron-core's latent attention has not")
    mscales = [scaling.get(key) for key in _MSCALES]
    if 0 in mscales or None in mscales and mscales != [None, None]:
        raise ValueError("rope scaling yarn with one of mscale and mscale_all_dim, expected both or neither")


_MSCALES = ("mscale", "mscale_all_dim")


def _read_all_heads(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """num_key_value_heads with latent attention, where every head has its own keys."""
    (groups,) = values
    if groups not in (ABSENT, None, model["num_attention_heads"]):
        raise ValueError(f"num_key_value_heads {groups} with latent attention of {model['num_attention_heads']} heads")
    return ABSENT


def _write_all_heads(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value != model["num_attention_heads"]:
        raise ValueError(f"model.num_query_groups: {value} with latent attention")
    return (value,)


def _read_none_is_zero(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    (count,) = values
    return count or None if count is not ABSENT else ABSENT


def _write_none_is_zero(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return (value or 0,)


def _read_not(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    (value,) = values
    return ABSENT if value in (ABSENT, None) else not value


def _write_not(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return (not value,)


def _read_untied(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    (tied,) = values
    if tied not in (ABSENT, None, False):
        raise ValueError("tie_word_embeddings is true, expected false in this family")
    return ABSENT


def _write_untied(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value:
        raise ValueError("model.tie_embeddings: true, expected false in this family")
    return (False,)


OPS: Mapping[str, ConfigOp] = MappingProxyType(
    {
        **DENSE,
        **EXPERTS,
        "rope_scaling": ConfigOp(_read_rope_scaling, _write_rope_scaling),
        "latent_rope_scaling": ConfigOp(_read_latent_rope_scaling, _write_latent_rope_scaling),
        "every_head": ConfigOp(_read_all_heads, _write_all_heads),
        "none_is_zero": ConfigOp(_read_none_is_zero, _write_none_is_zero),
        "not": ConfigOp(_read_not, _write_not),
        "untied": ConfigOp(_read_untied, _write_untied),
    }
)
"""`same`, the plain copy to and from every path of a row, is megatron_lm_zh/convert/model_config.py's own."""
