"""The bijective ops between a key of our model section and its keys in config.json, each beside its inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

ABSENT: Any = object()
"""Stands for a key that is not there, on either side."""


@dataclass(frozen=True)
class ConfigOp:
    """One op and its inverse. It raises ValueError, with words for the user, where values have no counterpart."""

    read: Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
    """(what config.json says at each path of the row, keys of our model section read so far) to our value; ABSENT
    leaves the key to our own default."""
    write: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]]
    """(our value, all keys of our model section) to what config.json gets at each path; ABSENT writes nothing. A dict
    is merged with what other rows write below the same path."""


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


def _read_window(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """A token sees itself and sliding_window - 1 before it; ours counts those before it."""
    (width,) = values
    return ABSENT if width in (ABSENT, None) else [width - 1, 0]


def _write_window(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value is None:
        return (None,)
    before, after = value
    if after != 0:
        raise ValueError(f"model.window_size: {list(value)} sees tokens that follow")
    return (before + 1,)


def _read_dense_first(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """first_k_dense_replace: layers before the first with experts."""
    (dense,) = values
    layers = model["num_layers"]
    dense = 0 if dense in (ABSENT, None) else dense
    return [0] * dense + [1] * (layers - dense)


def _write_dense_first(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    frequency = _frequencies(value, model["num_layers"])
    dense = frequency.index(1) if 1 in frequency else len(frequency)
    if 0 in frequency[dense:]:
        raise ValueError("model.moe_layer_freq: a dense layer follows one with experts")
    return (dense,)


def _read_sparse_step(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(decoder_sparse_step, mlp_only_layers): every n-th layer has experts, but for those that are named."""
    step, dense = (
        default if value in (ABSENT, None) else value for value, default in zip(values, (1, []), strict=True)
    )
    return [int((layer + 1) % step == 0 and layer not in dense) for layer in range(model["num_layers"])]


def _write_sparse_step(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    frequency = _frequencies(value, model["num_layers"])
    for step in range(1, len(frequency) + 1):
        regular = [int((layer + 1) % step == 0) for layer in range(len(frequency))]
        if regular == frequency:
            return step, []
    return 1, [layer for layer, has in enumerate(frequency) if not has]


def _frequencies(value: Any, layers: int) -> list[int]:
    """0 or 1 for each layer."""
    if isinstance(value, int):
        return [int(layer % value == 0) for layer in range(layers)]
    return [int(has) for has in value]


def _read_shared_size(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(n_shared_experts, moe_intermediate_size): the shared experts are one MLP of their summed width."""
    count, width = values
    return ABSENT if count in (ABSENT, None, 0) else count * width


def _write_shared_size(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    width = model["moe_ffn_hidden_size"] or model["ffn_hidden_size"]
    if value is not None and value % width:
        raise ValueError(f"model.moe_shared_expert_intermediate_size: {value} is no multiple of an expert's {width}")
    return (value // width if value else 0), ABSENT


def _read_not(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    (value,) = values
    return ABSENT if value in (ABSENT, None) else not value


def _write_not(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return (not value,)


OPS: Mapping[str, ConfigOp] = MappingProxyType(
    {
        "rope_scaling": ConfigOp(_read_rope_scaling, _write_rope_scaling),
        "window": ConfigOp(_read_window, _write_window),
        "dense_first": ConfigOp(_read_dense_first, _write_dense_first),
        "sparse_step": ConfigOp(_read_sparse_step, _write_sparse_step),
        "shared_size": ConfigOp(_read_shared_size, _write_shared_size),
        "not": ConfigOp(_read_not, _write_not),
    }
)
"""`same`, the plain copy to and from every path of a row, is megatron_lm_zh/convert/model_config.py's own."""
