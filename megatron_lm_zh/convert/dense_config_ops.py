"""Config ops of attention windows, and of the dense families whose classes leave things unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from megatron_lm_zh.convert.config_op import ABSENT, ConfigOp


def _read_window(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """A token sees itself and sliding_window - 1 before it; ours counts those before it."""
    (width,) = values
    return width if width in (ABSENT, None) else [width - 1, 0]


def _write_window(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value is None:
        return (None,)
    before, after = value
    if after != 0:
        raise ValueError(f"model.window_size: {list(value)} sees tokens that follow")
    return (before + 1,)


def _read_qwen_window(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(use_sliding_window, sliding_window): the width counts where the switch is on."""
    switch, width = values
    return _read_window((width,), model) if switch is True else None


def _write_qwen_window(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return value is not None, *_write_window(value, model)


def _read_windowed_layers(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(layer_types of transformers 5, max_window_layers of 4): layers before the first with the window."""
    types, first = values
    if model.get("window_size") is None:
        if types not in (ABSENT, None) and _SLIDING in types:
            raise ValueError(f"layer_types has {_SLIDING} and use_sliding_window is off")
        return ABSENT
    layers = model["num_layers"]
    if types in (ABSENT, None):
        return [int(layer >= (28 if first in (ABSENT, None) else first)) for layer in range(layers)]
    windowed = [int(kind == _SLIDING) for kind in types]
    _first_windowed(windowed)
    return windowed


def _write_windowed_layers(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    layers = model["num_layers"]
    if model["window_size"] is None:
        return [_FULL] * layers, ABSENT
    if isinstance(value, int):  # megatron-core counts layers from 1
        value = [int(layer % value != 0) for layer in range(1, layers + 1)]
    windowed = [1] * layers if value is None else [int(one) for one in value]
    return [_SLIDING if one else _FULL for one in windowed], _first_windowed(windowed)


def _first_windowed(windowed: list[int]) -> int:
    first = windowed.index(1) if 1 in windowed else len(windowed)
    if 0 in windowed[first:]:
        raise ValueError("a layer without the sliding window follows one with it, which transformers 4 cannot say")
    return first


_SLIDING, _FULL = "sliding_attention", "full_attention"


def _read_no_groups(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    return model["num_attention_heads"]


def _write_no_groups(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    """The class has a key and a value for every head, and no key of config.json that could say otherwise."""
    heads = model["num_attention_heads"]
    if value != heads:
        raise ValueError(f"model.num_query_groups: {value} is not num_attention_heads={heads}")
    return (ABSENT,)


def _read_even_heads(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    return model["hidden_size"] // model["num_attention_heads"]


def _write_even_heads(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    """The class shares hidden_size out among the heads, whatever config.json says."""
    expected = model["hidden_size"] // model["num_attention_heads"]
    if value != expected:
        raise ValueError(f"model.kv_channels: {value} is not hidden_size / num_attention_heads={expected}")
    return (ABSENT,)


def _read_fourfold(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """n_inner: null is four times the hidden size."""
    (width,) = values
    return 4 * model["hidden_size"] if width in (ABSENT, None) else width


def _write_fourfold(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return (None if value == 4 * model["hidden_size"] else value,)


def _read_baichuan_positions(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """max_position_embeddings: 7B has it and rotates, 13B has it not and uses ALiBi."""
    (longest,) = values
    return "alibi" if longest in (ABSENT, None) else "rope"


def _write_baichuan_positions(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value not in ("rope", "alibi"):
        raise ValueError(f"model.position_embedding_type: {value} in a Baichuan model")
    return (ABSENT,)


def _read_baichuan_length(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(max_position_embeddings, model_max_length)."""
    return next((value for value in values if value not in (ABSENT, None)), 4096)


def _write_baichuan_length(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return (value if model["position_embedding_type"] == "rope" else ABSENT), value


def _read_baichuan_base(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """Its class rotates by the base 10000, whatever config.json says."""
    return 10000


def _write_baichuan_base(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value != 10000:
        raise ValueError(f"model.rotary_base: {value} in a Baichuan model, which has 10000")
    return (ABSENT,)


def _read_baichuan_head(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(a key of ours, vocab_size): the class of Baichuan 2, which has 125696 ids, scales the output layer's rows."""
    ours, vocab_size = values
    return vocab_size == 125696 if ours is ABSENT else bool(ours)


def _write_baichuan_head(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return value, ABSENT


DENSE: Mapping[str, ConfigOp] = MappingProxyType(
    {
        "window": ConfigOp(_read_window, _write_window),
        "qwen_window": ConfigOp(_read_qwen_window, _write_qwen_window),
        "windowed_layers": ConfigOp(_read_windowed_layers, _write_windowed_layers),
        "no_groups": ConfigOp(_read_no_groups, _write_no_groups),
        "even_heads": ConfigOp(_read_even_heads, _write_even_heads),
        "baichuan_positions": ConfigOp(_read_baichuan_positions, _write_baichuan_positions),
        "baichuan_length": ConfigOp(_read_baichuan_length, _write_baichuan_length),
        "baichuan_base": ConfigOp(_read_baichuan_base, _write_baichuan_base),
        "baichuan_head": ConfigOp(_read_baichuan_head, _write_baichuan_head),
        "fourfold": ConfigOp(_read_fourfold, _write_fourfold),
    }
)
"""They are among all the ops of megatron_lm_zh/convert/config_ops.py."""
