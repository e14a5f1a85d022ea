"""Megatron-LM's arguments, as its checkpoints hold them, to the model section that means the same."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Set
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
_INTEGERS = ("rotary_base", "seq_length")
_REFUSED: Mapping[str, Any] = MappingProxyType(
    {
        "apply_layernorm_1p": False,
        "apply_residual_connection_post_layernorm": False,
        "attention_output_gate": False,
        "glu_linear_offset": 0.0,
        "moe_apply_probs_on_input": False,
        "quick_geglu": False,
        "rotary_interleaved": False,
    }
)
"""Arguments that change what a model computes, at the only value that our model section can say."""


def values_of(args: argparse.Namespace, where: str) -> dict[str, Any]:
    """Keys of the `model` section, but family and vocabulary, that Megatron-LM's arguments mean.

    Raises:
        UserError: an argument says something that the section cannot.
    """
    given = vars(args)
    for name, value in _REFUSED.items():
        if given.get(name) not in (None, value):
            raise UserError(f"--{name.replace('_', '-')} is {given[name]!r}", where=where, expected=repr(value))
    latent, experts = given.get("multi_latent_attention"), given.get("num_experts")
    names = [*_SAME, *(_LATENT if latent else ()), *(_EXPERTS if experts else ())]
    if given.get("position_embedding_type") == "rope":
        names += _ROPE
    values = {name: given[name] for name in names if given.get(name) is not None}
    grouped = given.get("group_query_attention") and not latent
    values["num_query_groups"] = given["num_query_groups"] if grouped else given.get("num_attention_heads")
    values["tie_embeddings"] = not given.get("untie_embeddings_and_output_weights", False)
    values["activation"] = _activation(given)
    epsilon = given.get("norm_epsilon") or given.get("layernorm_epsilon")
    values |= {"layernorm_epsilon": epsilon} if epsilon else {}
    values |= {"num_moe_experts": experts} if experts else {}
    scaling = _scaling(given, where)
    values |= {"rope_scaling": scaling} if scaling else {}
    for name in _INTEGERS:
        if isinstance(values.get(name), float) and values[name].is_integer():
            values[name] = int(values[name])
    if latent:
        values.pop("kv_channels", None)  # of no meaning there
    return values


def _activation(given: Mapping[str, Any]) -> str:
    if given.get("swiglu"):
        return "swiglu"
    if given.get("squared_relu"):
        return "squared_relu"
    # with its bias the activation is fused, and the fused GELU goes by the tanh formula
    fused = given.get("bias_gelu_fusion") and given.get("add_bias_linear", True)
    return "gelu_tanh" if fused or given.get("openai_gelu") else "gelu"


def _scaling(given: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    if given.get("use_rope_scaling"):
        return {"kind": "llama3", "factor": float(given.get("rope_scaling_factor") or 8.0)}
    if given.get("rotary_seq_len_interpolation_factor"):
        return {"kind": "linear", "factor": float(given["rotary_seq_len_interpolation_factor"])}
    if given.get("multi_latent_attention") and given.get("rope_type") == "yarn":
        factor, length = given.get("rotary_scaling_factor"), given.get("original_max_position_embeddings")
        if factor is None or length is None:
            mend = "give the config: --config"
            raise UserError("its args say yarn without its length", where=where, mend=mend)
        more = {name: given[name] for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim") if name in given}
        return {"kind": "yarn", "factor": float(factor), "original_max_position_embeddings": int(length), **more}
    return None


def model_of(values: Mapping[str, Any], name: str, vocab_size: int, rows: int, where: str) -> Model:
    """The model section of one family whose embedding has `rows` rows; UserError where the values do not make one."""
    sizes = {"vocab_size": vocab_size, "make_vocab_size_divisible_by": rows}
    try:
        model: Model = TypeAdapter(Model).validate_json(json.dumps({"family": name, **values, **sizes}))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"model.{first['loc'][0]}: {first['msg']}", where=where) from error
    return model


def choose_family(
    values: Mapping[str, Any], names: Set[str], vocab_size: int, rows: int, where: str, asked: str | None
) -> Model:
    """The model section in the family that was asked for, else in the only one whose tables fit.

    Args:
        values: keys of the `model` section.
        names: canonical names of the weights that there are.
        vocab_size: ids that there are.
        rows: of the embedding.
        where: what errors name.
        asked: a family's name.

    Raises:
        UserError: the family does not fit, or none, or several do.
    """
    if asked is not None:
        model = model_of(values, family(asked).name, vocab_size, rows, where)
        to_hf_config(family(asked), model, torch.float32, {})
        return model
    fitting: dict[str, Model] = {}
    for candidate in FAMILIES:
        model_or_none = _fits(candidate, values, names, vocab_size, rows, where)
        if model_or_none is not None:
            fitting[candidate.name] = model_or_none
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if not fitting:
        raise UserError("no family has this model", where=where, mend="name one to hear what does not fit: --family")
    raise UserError(f"the model may be of {', '.join(fitting)}", where=where, mend="name one: --family")


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
