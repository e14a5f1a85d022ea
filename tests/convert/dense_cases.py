"""The small random models of the dense families; those that transformers does not have are Llamas in other clothes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from family_models import DEFAULT_ROPE, FLIPS, INERT, SHAPES, SIZES, VOCAB, Case
from hf_models import read_json, weights
from torch import Tensor
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_lm_zh.models.alibi import slopes

Weights = dict[str, Tensor]
Config = dict[str, Any]

LINEAR = {"rope_scaling": "{kind: linear, factor: 2.0}"}
UNTIED: Mapping[str, Any] = {**SHAPES, "tie_embeddings": True}
TIED: Mapping[str, Any] = {**SHAPES, "tie_embeddings": False}
LLAMA: Mapping[str, Any] = {**UNTIED, "add_bias_linear": True}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
    "beta_fast": 24.0,
    "beta_slow": 2.0,
    "truncate": True,
}
NO_WINDOW = {**INERT, "window_attn_skip_freq": "the case with a window has it"}
HEADS: Mapping[str, Any] = {**SIZES, "num_key_value_heads": 6, "rope_parameters": {**DEFAULT_ROPE, "rope_theta": 1e4}}
GPT2: Mapping[str, Any] = {"n_embd": 48, "n_layer": 3, "n_head": 6, "vocab_size": VOCAB, "n_positions": 96}
GPT2_SHAPES: Mapping[str, Any] = {**TIED, "max_position_embeddings": 128}
GPT2_INERT: Mapping[str, str] = {
    "init_method_std": INERT["init_method_std"],
    "attention_dropout": INERT["attention_dropout"],
    "hidden_dropout": INERT["attention_dropout"],
}


def to_internlm2(state: Weights, config: Config) -> tuple[Weights, Config]:
    """A Llama as an InternLM2: groups of query heads, then their key head and their value head, in one tensor."""
    groups, channels = config["num_key_value_heads"], config["head_dim"]
    found: Weights = {}
    for name, tensor in state.items():
        if name.endswith("q_proj.weight"):
            parts = [state[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            heads = [part.view(groups, -1, channels, part.shape[1]) for part in parts]
            joined = torch.cat(heads, dim=1).flatten(0, 2)
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = joined
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            found[_renamed(name, INTERNLM2_NAMES)] = tensor
    return found, _remote(config, "internlm2", "InternLM2ForCausalLM") | {
        "num_key_value_heads": groups,
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "rope_scaling": None,
        "bias": False,
    }


INTERNLM2_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(f"{old}.", f"{new}.") if f".{old}." in f".{name}" else name
    return name


def _remote(config: Config, model_type: str, architecture: str) -> Config:
    """What a Llama's config.json has in common with that of a class that came with its files."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "hidden_act")
    keys += ("rms_norm_eps", "initializer_range", "max_position_embeddings", "tie_word_embeddings", "dtype")
    keys += ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys} | {"model_type": model_type, "architectures": [architecture]}


def internlm2_logits(directory: Path, ids: Tensor) -> Tensor:
    """Logits [b, s, vocab] of an InternLM2 by a Llama with its weights."""
    config, state = read_json(directory / "config.json"), weights(directory)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    found: Weights = {}
    for name, tensor in state.items():
        if name.endswith("wqkv.weight"):
            grouped = tensor.view(groups, heads // groups + 2, -1, tensor.shape[1])
            parts = {"q_proj": grouped[:, :-2], "k_proj": grouped[:, -2], "v_proj": grouped[:, -1]}
            for which, part in parts.items():
                llama = name.replace("attention.wqkv", f"self_attn.{which}")
                found[llama] = part.reshape(-1, tensor.shape[1])
        else:
            found[_renamed(name, {new: old for old, new in INTERNLM2_NAMES.items()})] = tensor
    return _llama_logits(config, found, ids, config["rope_theta"], groups)


def _llama_logits(config: Config, state: Weights, ids: Tensor, theta: float, groups: int, **inputs: Tensor) -> Tensor:
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    keys += ("rms_norm_eps", "tie_word_embeddings")
    rope = {"rope_type": "default", "rope_theta": theta}
    options = {key: config[key] for key in keys}
    model = LlamaForCausalLM(LlamaConfig(**options, num_key_value_heads=groups, rope_parameters=rope))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    with torch.no_grad():
        return model.eval()(ids, **inputs).logits  # type: ignore[no-any-return]


def to_baichuan(vocab_says_2: bool | None, alibi: bool) -> Callable[[Weights, Config], tuple[Weights, Config]]:
    """A Llama as a Baichuan: all queries, then all keys, then all values in one tensor.

    Args:
        vocab_says_2: what our key for NormHead says; None: the key is not there.
        alibi: config.json has no max_position_embeddings.
    """

    def disguised(state: Weights, config: Config) -> tuple[Weights, Config]:
        found: Weights = {}
        for name, tensor in state.items():
            if name.endswith("q_proj.weight"):
                parts = [state[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
                found[name.replace("q_proj", "W_pack")] = torch.cat(parts)
            elif not name.endswith(("k_proj.weight", "v_proj.weight")):
                found[name] = tensor
        made = _remote(config, "baichuan", "BaichuanForCausalLM") | {"model_max_length": 96}
        if alibi:
            del made["max_position_embeddings"]
        return found, made if vocab_says_2 is None else made | {"norm_head": vocab_says_2}

    return disguised


def baichuan_logits(directory: Path, ids: Tensor) -> Tensor:
    """Logits [b, s, vocab] of a Baichuan by a Llama with its weights, which rotates nothing where there is ALiBi."""
    config, state = read_json(directory / "config.json"), weights(directory)
    found: Weights = {}
    for name, tensor in state.items():
        if name.endswith("W_pack.weight"):
            for which, part in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                found[name.replace("W_pack", which)] = part
        else:
            found[name] = tensor
    if config.get("norm_head"):
        found["lm_head.weight"] = normalize(found["lm_head.weight"])
    heads = config["num_attention_heads"]
    if "max_position_embeddings" in config:
        return _llama_logits(config, found, ids, 10000.0, heads)
    distance = torch.arange(ids.shape[1])[None, :] - torch.arange(ids.shape[1])[:, None]
    bias = torch.tensor(slopes(heads))[:, None, None] * distance
    mask = bias.masked_fill(distance > 0, float("-inf"))[None].expand(len(ids), -1, -1, -1)
    still = torch.zeros_like(ids)
    return _llama_logits(config, found, ids, 10000.0, heads, attention_mask=mask, position_ids=still)


REMOTE_INERT = {key: reason for key, reason in INERT.items() if key != "attention_dropout"}
# of a head that is no language model's
OF_SUMMARIES = tuple(
    f"summary_{what}" for what in ("proj_to_labels", "use_proj", "activation", "first_dropout", "type")
)
BAICHUAN_FLIPS: Mapping[str, str] = {"layernorm_epsilon": "0.01"}
DENSE: Mapping[str, Case] = {
    "llama": Case("llama", "LlamaForCausalLM", SIZES, flips={**FLIPS, **LINEAR}, shapes=LLAMA),
    "llama_tied_head_dim": Case(
        "llama",
        "LlamaForCausalLM",
        {**SIZES, "tie_word_embeddings": True, "head_dim": 10, "rms_norm_eps": 3e-5},
        flips={**FLIPS, **LINEAR},
        shapes={**LLAMA, "tie_embeddings": False},
    ),
    "llama3": Case(
        "llama", "LlamaForCausalLM", {**SIZES, "rope_parameters": LLAMA3}, {**FLIPS, "rope_scaling": "null"}, LLAMA
    ),
    "llama_biases": Case(
        "llama",
        "LlamaForCausalLM",
        {**SIZES, "attention_bias": True, "mlp_bias": True},
        flips={**FLIPS, **LINEAR},
        shapes={**LLAMA, "add_bias_linear": False},
    ),
    "mistral": Case(
        "mistral",
        "MistralForCausalLM",
        {**SIZES, "sliding_window": None},
        flips={**FLIPS, **LINEAR, "window_size": "[5, 0]"},
        shapes=UNTIED,
    ),
    "mistral_window": Case(
        "mistral",
        "MistralForCausalLM",
        {**SIZES, "sliding_window": 7, "head_dim": 10},
        flips={**FLIPS, **LINEAR, "window_size": "[7, 0]"},
        shapes=UNTIED,
    ),
    "qwen2": Case(
        "qwen2",
        "Qwen2ForCausalLM",
        {**SIZES, "tie_word_embeddings": True},
        flips={**FLIPS, **LINEAR, "window_size": "[5, 0]"},
        shapes=TIED,
        inert=NO_WINDOW,
        rewritten=("max_window_layers",),
    ),
    "qwen2_window": Case(
        "qwen2",
        "Qwen2ForCausalLM",
        {**SIZES, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        flips={**FLIPS, **LINEAR, "window_size": "[7, 0]", "window_attn_skip_freq": "[0, 0, 1]"},
        shapes=UNTIED,
    ),
    "qwen2_yarn": Case(
        "qwen2",
        "Qwen2ForCausalLM",
        {**SIZES, "rope_parameters": YARN},
        flips={**FLIPS, "rope_scaling": "null", "window_size": "[5, 0]"},
        shapes=UNTIED,
        inert=NO_WINDOW,
        rewritten=("max_window_layers",),
    ),
    "qwen3": Case(
        "qwen3",
        "Qwen3ForCausalLM",
        {**SIZES, "head_dim": 10},
        flips={**FLIPS, **LINEAR, "window_size": "[5, 0]"},
        shapes=UNTIED,
        inert=NO_WINDOW,
        rewritten=("max_window_layers",),
    ),
    "qwen3_tied_window": Case(
        "qwen3",
        "Qwen3ForCausalLM",
        {
            **SIZES,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 2,
        },
        flips={**FLIPS, **LINEAR, "window_size": "[7, 0]", "window_attn_skip_freq": "[0, 1, 1]"},
        shapes={**TIED, "kv_channels": 8},
    ),
    "glm4": Case(
        "glm4",
        "GlmForCausalLM",
        {
            **SIZES,
            "head_dim": 12,
            "rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.5},
            "pad_token_id": 0,
            "eos_token_id": [1, 2],
        },
        flips={**FLIPS, "rotary_percent": "1.0"},
        shapes={**UNTIED, "add_qkv_bias": False},
    ),
    "glm4_tied": Case(
        "glm4",
        "GlmForCausalLM",
        {
            **SIZES,
            "head_dim": 16,
            "rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.25},
            "attention_bias": False,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        flips={**FLIPS, "rotary_percent": "0.5"},
        shapes={**TIED, "kv_channels": 8, "add_qkv_bias": True},
    ),
    "glm4_0414": Case(
        "glm4_0414",
        "Glm4ForCausalLM",
        {
            **SIZES,
            "head_dim": 12,
            "rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.5},
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "pad_token_id": 0,
            "eos_token_id": [1, 2],
        },
        flips={**FLIPS, "rotary_percent": "1.0"},
        shapes={**UNTIED, "add_qkv_bias": True},
    ),
    "glm4_0414_tied": Case(
        "glm4_0414",
        "Glm4ForCausalLM",
        {
            **SIZES,
            "head_dim": 16,
            "rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.25},
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        flips={**FLIPS, "rotary_percent": "0.5"},
        shapes={**TIED, "kv_channels": 8, "add_qkv_bias": False},
    ),
    "baichuan": Case(
        "baichuan",
        "LlamaForCausalLM",
        HEADS,
        flips={**BAICHUAN_FLIPS, "rotary_base": "500", "normalized_output": "true", "position_embedding_type": "alibi"},
        shapes=UNTIED,
        inert=REMOTE_INERT,
        disguise=to_baichuan(None, alibi=False),
        reference=baichuan_logits,
    ),
    "baichuan2_13b": Case(
        "baichuan",
        "LlamaForCausalLM",
        HEADS,
        flips={**BAICHUAN_FLIPS, "normalized_output": "false", "position_embedding_type": "rope"},
        shapes=UNTIED,
        inert={**REMOTE_INERT, "rotary_base": "nothing is rotated; another base is refused"},
        disguise=to_baichuan(True, alibi=True),
        reference=baichuan_logits,
    ),
    "internlm2": Case(
        "internlm2",
        "LlamaForCausalLM",
        SIZES,
        shapes=UNTIED,
        inert=REMOTE_INERT,
        disguise=to_internlm2,
        reference=internlm2_logits,
    ),
    "gpt2": Case("gpt2", "GPT2LMHeadModel", GPT2, BAICHUAN_FLIPS, GPT2_SHAPES, GPT2_INERT, rewritten=OF_SUMMARIES),
    "gpt2_untied": Case(
        "gpt2",
        "GPT2LMHeadModel",
        {**GPT2, "n_inner": 80, "tie_word_embeddings": False, "layer_norm_epsilon": 3e-5},
        BAICHUAN_FLIPS,
        {**GPT2_SHAPES, "tie_embeddings": True},
        GPT2_INERT,
        rewritten=OF_SUMMARIES,
    ),
}
"""Name of a case to the case."""
