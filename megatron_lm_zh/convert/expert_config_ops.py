"""Config ops of mixtures of experts: which layers have them, how wide they are, how the router chooses."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from megatron_lm_zh.convert.config_op import ABSENT, ConfigOp


def _read_dense_first(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """first_k_dense_replace: layers before the first with experts."""
    (dense,) = values
    layers = model["num_layers"]
    if dense in (ABSENT, None):
        return ABSENT
    return [0] * dense + [1] * (layers - dense) if dense else 1


def _write_dense_first(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    frequency = _frequencies(value, model["num_layers"])
    dense = frequency.index(1) if 1 in frequency else len(frequency)
    if 0 in frequency[dense:]:
        raise ValueError("model.moe_layer_freq: a dense layer follows one with experts")
    return (dense,)


def _read_sparse_step(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(decoder_sparse_step, mlp_only_layers): every n-th layer has experts, but for those that are named."""
    step, dense = values
    step = 1 if step in (ABSENT, None) else step
    dense = [] if dense in (ABSENT, None) else dense
    frequency = [int((layer + 1) % step == 0 and layer not in dense) for layer in range(model["num_layers"])]
    return frequency if 0 in frequency else 1


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
    if count in (ABSENT, None, 0):
        raise ValueError("n_shared_experts is none, expected one or more")
    return count * width


def _write_shared_size(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    width = model["moe_ffn_hidden_size"] or model["ffn_hidden_size"]
    if not value or value % width:
        raise ValueError(f"model.moe_shared_expert_intermediate_size: {value} is no multiple of an expert's {width}")
    return value // width, ABSENT


def _read_expert_width(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    (width,) = values
    return width


def _write_expert_width(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    """Ours may be null: an expert is then as wide as a dense MLP."""
    return (value or model["ffn_hidden_size"],)


def _read_scale(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """routed_scaling_factor: ours is null where it is one."""
    (factor,) = values
    return factor if factor is ABSENT else None if factor in (None, 1) else float(factor)


def _write_scale(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return (1.0 if value is None else value,)


def _read_groups(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """n_group: ours is null where all experts are one group."""
    (groups,) = values
    return groups if groups is ABSENT else None if groups in (None, 1) else groups


def _write_groups(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return (1 if value is None else value,)


def _read_chosen_groups(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """topk_group of DeepSeek-V3, where a group is as good as the sum of its two best experts."""
    chosen = _read_greedy_chosen_groups(values, model)
    if chosen is not None:
        _check_group_score(chosen, model)
    return chosen


def _write_chosen_groups(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value is not None:
        _check_group_score(value, model)
    return _write_groups(value, model)


def _read_greedy_groups(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """(topk_method, n_group) of DeepSeek-V2: `greedy` knows no groups."""
    method, groups = values
    if method in (ABSENT, None, "greedy"):
        return None
    if method != "group_limited_greedy":
        raise ValueError(f"topk_method {method!r}, expected greedy or group_limited_greedy")
    return None if groups in (ABSENT, None, 1) else groups


def _write_greedy_groups(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    return ("greedy", 1) if value is None else ("group_limited_greedy", value)


def _read_greedy_chosen_groups(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """topk_group of DeepSeek-V2."""
    (chosen,) = values
    if model.get("moe_router_num_groups") is None:
        return None
    if chosen in (ABSENT, None):
        raise ValueError("n_group without topk_group")
    return chosen


def _read_best_score(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """A group is as good as its best expert; the family says so, and no key of config.json."""
    return ABSENT


def _write_best_score(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    groups, chosen = model["moe_router_num_groups"], model["moe_router_group_topk"]
    if value == "sum" and groups != chosen and (best := model["moe_router_topk"] // chosen) > 1:
        raise ValueError(f"model.moe_router_group_score: sum, of {best} experts; DeepSeek-V2 takes the best one")
    return (ABSENT,)


def _check_group_score(chosen: int, model: Mapping[str, Any]) -> None:
    """megatron-core scores a group by its best topk / topk_group experts, DeepSeek-V3 by its best 2."""
    topk = model["moe_router_topk"]
    if chosen != model["moe_router_num_groups"] and topk // chosen != 2:
        raise ValueError(
            f"groups scored by their best 2 experts: megatron-core takes {topk} // {chosen} = {topk // chosen} "
            "for experts a token over groups a token"
        )


def _read_topk(values: tuple[Any, ...], model: Mapping[str, Any]) -> Any:
    """num_experts_per_tok where their scores are made to sum to one, which megatron-core leaves out for one expert."""
    (topk,) = values
    _write_topk(topk, model)
    return topk


def _write_topk(value: Any, model: Mapping[str, Any]) -> tuple[Any, ...]:
    if value == 1:
        raise ValueError("one expert a token with a sigmoid's score, which megatron-core does not normalise")
    return (value,)


EXPERTS: Mapping[str, ConfigOp] = MappingProxyType(
    {
        "dense_first": ConfigOp(_read_dense_first, _write_dense_first),
        "sparse_step": ConfigOp(_read_sparse_step, _write_sparse_step),
        "shared_size": ConfigOp(_read_shared_size, _write_shared_size),
        "expert_width": ConfigOp(_read_expert_width, _write_expert_width),
        "routed_scale": ConfigOp(_read_scale, _write_scale),
        "groups": ConfigOp(_read_groups, _write_groups),
        "chosen_groups": ConfigOp(_read_chosen_groups, _write_chosen_groups),
        "greedy_groups": ConfigOp(_read_greedy_groups, _write_greedy_groups),
        "greedy_chosen_groups": ConfigOp(_read_greedy_chosen_groups, _write_groups),
        "best_score": ConfigOp(_read_best_score, _write_best_score),
        "normalised_topk": ConfigOp(_read_topk, _write_topk),
    }
)
