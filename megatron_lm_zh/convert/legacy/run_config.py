"""Megatron-Bridge's run_config.yaml: the model that a checkpoint of it holds, as Megatron-LM's arguments.

Megatron-Bridge writes the file into each checkpoint (src/megatron/bridge/training/checkpointing.py, `save_checkpoint`)
with PyYAML's safe dumper (src/megatron/bridge/utils/yaml_utils.py): every dataclass is a mapping with its class under
`_target_`, a function is `{_target_: torch.nn.functional.silu, _call_: false}`. `model` is a provider, whose fields are
those of megatron-core's TransformerConfig and of GPTModel; later versions put the former under `model.transformer` and
name functions by a word (src/megatron/bridge/models/gpt/model_config.py). A whole file, of Llama 3.2 1B, is printed in
verdimrc/playground-nemo-2.0-gh, 05-byoc-te-mb/with-ngc-pytorch-25.06-cleanup.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from megatron_lm_zh.convert.legacy.arguments import REFUSED
from megatron_lm_zh.convert.model_config import SPECIAL_TOKENS
from megatron_lm_zh.errors import UserError

RUN_CONFIG = "run_config.yaml"

_NEEDED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "seq_length",
    "normalization",
    "layernorm_epsilon",
    "add_bias_linear",
    "gated_linear_unit",
    "activation_func",
    "position_embedding_type",
    "share_embeddings_and_output_weights",
)
_ACTIVATIONS: Mapping[tuple[str, bool], str] = MappingProxyType(
    {
        ("silu", True): "swiglu",
        ("gelu", False): "gelu",
        ("fast_gelu", False): "openai_gelu",
        ("gelu_pytorch_tanh", False): "openai_gelu",
        ("squared_relu", False): "squared_relu",
        ("relu2", False): "squared_relu",
    }
)
"""Function and whether it is gated, to the argument that means it."""
_CLASSES: Mapping[str, str | None] = MappingProxyType(
    {
        r"(Bridge)?GPTModel(Config|Provider)|GPTProvider\d+[BM]|MLAModel(Config|Provider)": None,
        r"(Code)?Llama(2|3|31|32)?ModelProvider(\d+B)?": "llama",
        r"Mistral(Small3)?ModelProvider(\d+B)?": "mistral",
        r"Mixtral(8x\d+B|ModelProvider(8x\d+B)?)": "mixtral",
        r"Qwen(2|25)ModelProvider\w*": "qwen2",
        r"Qwen2MoEModelProvider\w*": "qwen2_moe",
        r"Qwen3ModelProvider\w*": "qwen3",
        r"Qwen3MoEModelProvider\w*": "qwen3_moe",
        r"DeepSeekV2(Lite)?(Model)?Provider": "deepseek_v2",
        r"DeepSeekV3(Model)?Provider|Moonlight(Model)?Provider(16B)?|KimiK2(Model)?Provider": "deepseek_v3",
        r"GLM45\w*ModelProvider\w*": "glm4_moe",
    }
)
"""Classes that build what their fields say, by name, and the family that they are of where it is one."""
_REFUSED: Mapping[str, Any] = MappingProxyType({**REFUSED, "quant_recipe": None, "restore_modelopt_state": False})
_WORDS = re.compile(
    r"(?:^|_)(clamp|gamma|hyper|layernorm|logits?|multiplier|mup|nope|norm|qk|residual|rope|rotary|scale|scaling|sinks|"
    r"softcap|softcapping|softmax|yarn)(?=_|$)"
)
"""Words in the names of keys that may change what a model computes."""
_KNOWN = re.compile(
    r"\w*_(fusion|scale_func)|\w*init_method(_std)?|log_max_attention_logit|qk_clip\w*|fp[48]_\w+|"
    r"attention_softmax_in_fp32|fp32_residual_connection|persist_layer_norm|memory_efficient_layer_norm|"
    r"apply_query_key_layer_scaling|fused_single_qkv_rope|mtp_loss_scaling_factor|rotary_(base|percent|scaling_factor)|"
    r"yarn_\w+|rope_(type|scaling|scaling_factor)|moe_router_topk_scaling_factor|moe_router_pre_softmax|qk_layernorm|"
    r"layernorm_epsilon|qk_head_dim|qk_pos_emb_head_dim|scale_factor"
)
"""Keys with such a word that are read here, or change nothing."""
_RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "num_moe_experts": "num_experts",
        "bias_activation_fusion": "bias_gelu_fusion",
        "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
        "rope_scaling": "use_rope_scaling",
    }
)
"""Keys of run_config.yaml to the arguments that say the same."""


@dataclass(frozen=True)
class RunConfig:
    """What a run_config.yaml says of a model."""

    path: Path
    model: Mapping[str, Any]
    """Its model section, that of the transformer included."""
    class_name: str
    """Of the provider."""
    is_known: bool
    """Whether the class is one that builds what its fields say."""
    family: str | None
    """The family that the class names."""

    @cached_property
    def arguments(self) -> argparse.Namespace:
        """The same in Megatron-LM's arguments; UserError where a key is missing, or says what no model section can."""
        return _arguments(self.model, str(self.path))

    @property
    def special_tokens(self) -> dict[str, Any]:
        """Ids of the special tokens, as far as it has them."""
        generation = self.model.get("generation_config")
        generation = generation.get("config_dict", generation) if isinstance(generation, dict) else {}
        return {key: generation.get(key) for key in SPECIAL_TOKENS}


def model_key(name: str) -> str:
    """An argument that has the same name in run_config.yaml, as it stands there."""
    return f"model.{name}"


def read_run_config(checkpoint: Path) -> RunConfig | None:
    """What the run_config.yaml of a checkpoint says; None where there is none. Nothing in it is run or imported.

    Raises:
        UserError: it is unreadable, or has no model.
    """
    path = checkpoint / RUN_CONFIG
    if not path.is_file():
        return None
    where = str(path)
    whole = _load(path)
    if whole.get("peft"):
        mend = "merge them into the model first"
        raise UserError("peft: the checkpoint holds adapters alone", where=where, mend=mend)
    model = whole.get("model")
    if not isinstance(model, dict):
        raise UserError("no model section", where=where)
    class_name = str(model.get("_target_")).rpartition(".")[2]
    inner = model.get("transformer")
    model = {str(key): value for key, value in ((inner if isinstance(inner, dict) else {}) | model).items()}
    found = [family for pattern, family in _CLASSES.items() if re.fullmatch(pattern, class_name)]
    family = found[0] if found else None
    return RunConfig(path, model, class_name, bool(found), family)


def _load(path: Path) -> dict[str, Any]:
    """The file as plain values, by PyYAML's safe loader, the counterpart of what wrote it."""
    try:
        whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"not plain YAML: {error.problem or error.context}", where=where) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"unreadable: {error}", where=str(path)) from error
    if not isinstance(whole, dict):
        raise UserError("no mapping", where=str(path), expected="sections: model, train, ...")
    return whole


def _arguments(model: Mapping[str, Any], where: str) -> argparse.Namespace:
    """The model section in Megatron-LM's arguments."""
    for key in _NEEDED:
        if model.get(key) is None:
            raise UserError(f"no model.{key}", where=where)
    for key, value in model.items():
        unknown = _WORDS.search(key) and not _KNOWN.fullmatch(key)
        if (key in _REFUSED or unknown) and value and value != _REFUSED.get(key):
            raise UserError(f"{model_key(key)} is {value!r}"[:200], where=where, expected=repr(_REFUSED.get(key)))
    given = {_RENAMED.get(key, key): value for key, value in model.items()}
    given["untie_embeddings_and_output_weights"] = not model["share_embeddings_and_output_weights"]
    given[_activation(model, where)] = True
    heads, groups = model["num_attention_heads"], model.get("num_query_groups")
    given |= {"group_query_attention": groups not in (None, heads), "num_query_groups": groups or heads}
    if model.get("ffn_hidden_size") is None and isinstance(model["hidden_size"], int):
        given["ffn_hidden_size"] = 4 * model["hidden_size"]
    given["mtp_num_layers"] = model.get("mtp_num_layers") or None
    # GPTModel's longest sequence is seq_length; of latent attention the other key was once yarn's original length
    longest = model.get("max_position_embeddings")
    if model.get("multi_latent_attention"):
        given = {"rope_type": "yarn", "original_max_position_embeddings": longest} | given
        longest = None
    learned = model["position_embedding_type"] == "learned_absolute"
    given["max_position_embeddings"] = model["seq_length"] if learned or longest is None else longest
    if model.get("scale_factor") and model.get("old_context_len"):  # Llama 3.1 before `rope_scaling` was a key
        given |= {"use_rope_scaling": True, "rope_scaling_factor": model["scale_factor"]}
    return argparse.Namespace(**given)


def _activation(model: Mapping[str, Any], where: str) -> str:
    """The argument that means the activation."""
    function, gated = model["activation_func"], bool(model["gated_linear_unit"])
    target = function.get("_target_") if isinstance(function, dict) else function
    name = str(target).rpartition(".")[2]
    if (name, gated) not in _ACTIVATIONS:
        words = "silu with model.gated_linear_unit, or gelu, fast_gelu, squared_relu without"
        what = f"model.activation_func is {target!r}, model.gated_linear_unit {gated}"
        raise UserError(what, where=where, expected=words)
    return _ACTIVATIONS[name, gated]
