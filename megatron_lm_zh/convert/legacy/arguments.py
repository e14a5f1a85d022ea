"""Megatron-LM's arguments, as its checkpoints hold them, to the model section that means the same."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Conversion
from megatron_lm_zh.convert.model_config import to_hf_config
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.base import Family
from megatron_lm_zh.families.registry import FAMILIES, family

_SAME = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "ffn_hidden_size",
    "kv_channels",
    "seq_length",
    "max_position_embeddings",
    "normalization",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "window_size",
    "window_attn_skip_freq",
    "position_embedding_type",
    "mtp_num_layers",
    "init_method_std",
    "attention_dropout",
    "hidden_dropout",
)
_ROPE = ("rotary_base", "rotary_percent")
_LATENT = ("multi_latent_attention", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
_EXPERTS = (
    "moe_layer_freq",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
    "moe_router_topk",
    "moe_router_score_function",
    "moe_router_pre_softmax",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_topk_scaling_factor",
    "moe_router_enable_expert_bias",
)
_GROUPS = ("moe_router_num_groups", "moe_router_group_topk")
_INTEGERS = ("rotary_base", "seq_length")
REFUSED: Mapping[str, Any] = MappingProxyType(
    {
        "activation_func_clamp_value": None,
        "apply_layernorm_1p": False,
        "apply_residual_connection_post_layernorm": False,
        "attention_output_gate": False,
        "experimental_attention_variant": None,
        "glu_linear_offset": 0.0,
        "heterogeneous_block_specs": False,
        "heterogeneous_layers_config_path": None,
        "is_hybrid_model": False,
        "layernorm_zero_centered_gamma": False,
        "linear_attention_freq": None,
        "moe_apply_probs_on_input": False,
        "moe_latent_size": None,
        "moe_router_topk_limited_devices": None,
        "mrope_section": None,
        "mtp_use_repeated_layer": False,
        "no_rope_freq": None,
        "qk_l2_norm": False,
        "quick_geglu": False,
        "rotary_interleaved": False,
        "softmax_scale": None,
        "softmax_type": "vanilla",
        "use_mup": False,
    }
)
"""Arguments that change what a model computes, at the only value that our model section can say."""
_LLAMA3: Mapping[str, str] = MappingProxyType(
    {
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "old_context_len": "original_max_position_embeddings",
    }
)
"""Numbers of Llama 3.1's scaling where they are given, to their names in our section."""
_YARN = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def as_flag(name: str) -> str:
    """An argument as Megatron-LM's command line has it."""
    return f"--{name.replace('_', '-')}"


def values_of(args: argparse.Namespace, where: str, named: Callable[[str], str] = as_flag) -> dict[str, Any]:
    """Keys of the `model` section, but family and vocabulary, that Megatron-LM's arguments mean.

    Args:
        args: the arguments, by their names in Python.
        where: what errors name.
        named: how errors name an argument.

    Raises:
        UserError: an argument says something that the section cannot.
    """
    given = vars(args)
    for name, value in REFUSED.items():
        if given.get(name) not in (None, value):
            raise UserError(f"{named(name)} is {given[name]!r}", where=where, expected=repr(value))
    latent, experts = given.get("multi_latent_attention"), given.get("num_experts")
    if experts and "sinkhorn" in (given.get("moe_router_load_balancing_type") or ()):
        raise UserError(f"{named('moe_router_load_balancing_type')} is sinkhorn", where=where, expected="another")
    names = [*_SAME, *(_LATENT if latent else ()), *(_EXPERTS if experts else ())]
    if given.get("position_embedding_type") in ("rope", "yarn"):
        names += _ROPE
    values = {name: given[name] for name in names if given.get(name) is not None}
    if given.get("position_embedding_type") == "yarn":
        values["position_embedding_type"] = "rope"  # which `rope_scaling` stretches
    if values.get("moe_router_score_function") == "sigmoid":
        values.pop("moe_router_pre_softmax", None)  # of no meaning there, and often set
    grouped = given.get("group_query_attention") and not latent
    values["num_query_groups"] = given["num_query_groups"] if grouped else given.get("num_attention_heads")
    values["tie_embeddings"] = not given.get("untie_embeddings_and_output_weights", False)
    values["activation"] = _activation(given)
    epsilon = given.get("norm_epsilon") or given.get("layernorm_epsilon")
    values |= {"layernorm_epsilon": epsilon} if epsilon else {}
    values |= {"num_moe_experts": experts} if experts else {}
    scaling = _scaling(given, where)
    values |= {"rope_scaling": scaling} if scaling else {}
    length = (scaling or {}).get("original_max_position_embeddings", 8192 if given.get("use_rope_scaling") else None)
    if scaling and length and (scaling["kind"] == "yarn" or not _is_beyond(values, length)):
        # transformers 4 takes yarn's factor from these two lengths, whatever config.json says the factor is
        values["max_position_embeddings"] = round(scaling["factor"] * length)
    for name in _INTEGERS:
        if isinstance(values.get(name), float) and values[name].is_integer():
            values[name] = int(values[name])
    if latent:
        values.pop("kv_channels", None)  # of no meaning there
    groups = values.get("moe_router_num_groups")
    if groups == 1:
        values = {name: value for name, value in values.items() if name not in _GROUPS}
    elif groups:
        values["moe_router_group_score"] = "sum"  # megatron-core has no other
    return values


def _is_beyond(values: Mapping[str, Any], length: int) -> bool:
    """Whether the model claims to take more than it was trained on before its positions were stretched."""
    longest = values.get("max_position_embeddings")
    return isinstance(longest, int) and longest > length


def _activation(given: Mapping[str, Any]) -> str:
    if given.get("swiglu"):
        return "swiglu"
    if given.get("squared_relu"):
        return "squared_relu"
    # with its bias the activation is fused, and the fused GELU goes by the tanh formula
    fused = given.get("bias_gelu_fusion") and given.get("add_bias_linear", True)
    return "gelu_tanh" if fused or given.get("openai_gelu") else "gelu"


def _scaling(given: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    if given.get("multi_latent_attention"):
        return _latent_scaling(given, where)
    if given.get("position_embedding_type") == "yarn":
        truncate = given.get("yarn_correction_range_round_to_int")
        more = {} if truncate is None else {"truncate": truncate}
        names = ("yarn_rotary_scaling_factor", "yarn_original_max_position_embeddings")
        return _yarn(given, *names, {name: given.get(f"yarn_{name}") for name in _YARN} | more, where)
    if given.get("use_rope_scaling"):
        more = {ours: given[theirs] for theirs, ours in _LLAMA3.items() if given.get(theirs) is not None}
        return {"kind": "llama3", "factor": float(given.get("rope_scaling_factor") or 8.0), **more}
    if given.get("rotary_seq_len_interpolation_factor"):
        return {"kind": "linear", "factor": float(given["rotary_seq_len_interpolation_factor"])}
    return None


def _latent_scaling(given: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Latent attention has numbers of its own; megatron-core scales its scores by two of them, yarn or not."""
    factor, yarn = given.get("rotary_scaling_factor"), given.get("rope_type") == "yarn"
    if factor == 1:
        return None
    if yarn:
        more = {name: given.get(name) for name in _YARN}
        if (more["mscale"], more["mscale_all_dim"]) == (1, 0):  # megatron-core's words for: neither is given
            more |= {"mscale": None, "mscale_all_dim": None}
        return _yarn(given, "rotary_scaling_factor", "original_max_position_embeddings", more, where)
    if factor is not None and given.get("mscale_all_dim"):
        raise UserError("its attention scores are scaled as with yarn, its positions are not", where=where)
    return None


def _yarn(
    given: Mapping[str, Any], factor: str, length: str, more: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    """The scaling whose factor and original length stand under these two names."""
    for name in (factor, length):
        if given.get(name) is None:
            raise UserError(f"yarn without {name}", where=where, mend="give the config: --config")
    numbers = {"factor": float(given[factor]), "original_max_position_embeddings": int(given[length])}
    return {"kind": "yarn", **numbers, **{name: value for name, value in more.items() if value is not None}}


def model_of(values: Mapping[str, Any], name: str, vocab_size: int, rows: int, where: str) -> Model:
    """The model section of one family whose embedding has `rows` rows; UserError where the values do not make one."""
    sizes = {"vocab_size": vocab_size, "make_vocab_size_divisible_by": rows}
    try:
        model: Model = TypeAdapter(Model).validate_json(json.dumps({"family": name, **values, **sizes}))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"model.{first['loc'][0]}: {first['msg']}", where=where) from error
    return model


def families_for(
    values: Mapping[str, Any], names: Set[str], vocab_size: int, rows: int, where: str, asked: str | None
) -> dict[str, Model]:
    """The model section in the family that was asked for, else in every one whose tables fit, by family.

    Args:
        values: keys of the `model` section.
        names: canonical names of the weights that there are.
        vocab_size: ids that there are.
        rows: of the embedding.
        where: what errors name.
        asked: a family's name.

    Raises:
        UserError: the family does not fit, or none does.
    """
    if asked is not None:
        model = model_of(values, family(asked).name, vocab_size, rows, where)
        to_hf_config(family(asked), model, torch.float32, {})
        return {asked: model}
    fitting: dict[str, Model] = {}
    for candidate in FAMILIES:
        model_or_none = _fits(candidate, values, names, vocab_size, rows, where)
        if model_or_none is not None:
            fitting[candidate.name] = model_or_none
    if not fitting:
        raise UserError("no family has this model", where=where, mend="name one to hear what does not fit: --family")
    return fitting


def _fits(
    candidate: Family, values: Mapping[str, Any], names: Set[str], vocab_size: int, rows: int, where: str
) -> Model | None:
    """The model section in a family, or None where the family's tables do not have this config and these weights."""
    if candidate.huggingface is None:
        return None
    try:
        model = model_of(values, candidate.name, vocab_size, rows, where)
        to_hf_config(candidate, model, torch.float32, {})
        steps = Conversion.of(candidate.huggingface, model, vocab_size).steps
    except UserError:
        return None  # what does not fit is told where the family was asked for
    return model if {step.megatron for step in steps} == names else None


def with_rows(model: Model, vocab_size: int, rows: int) -> Model:
    """The model section with a vocabulary padded to `rows` rows."""
    return dataclasses.replace(model, vocab_size=vocab_size, make_vocab_size_divisible_by=rows)
