"""Families with experts: multi-token prediction, published configs, and what they cannot carry."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import CASES, IDS, make, run_config
from hf_models import read_json, same_bits, weights
from prediction_models import add_predictions
from prediction_ranks import predictions_of_checkpoint
from safetensors.torch import save_file
from support.pool import RankPool
from transformers import AutoModelForCausalLM

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.model_config import from_hf_config, to_hf_config
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import family, family_of

PREDICTING = ["deepseek_v3", "glm4_moe"]


def predicting(name: str, directory: Path, modules: int) -> Path:
    """A model with modules of multi-token prediction."""
    return add_predictions(make(CASES[name], directory), modules)


def there_and_back(hf: Path, directory: Path) -> Path:
    """The model's export."""
    from_hf(hf, directory / "megatron")
    to_hf(directory / "megatron", directory / "back")
    return directory / "back"


@pytest.mark.parametrize("modules", [1, 2])
@pytest.mark.parametrize("name", PREDICTING)
def test_prediction_modules_come_back(tmp_path: Path, name: str, modules: int) -> None:
    hf = predicting(name, tmp_path / "hf", modules)
    back = there_and_back(hf, tmp_path)
    assert same_bits(weights(hf), weights(back))
    assert read_json(back / "config.json")["num_nextn_predict_layers"] == modules


def test_the_tensors_decide_whether_there_are_modules(tmp_path: Path) -> None:
    """transformers leaves their tensors out and keeps their number."""
    hf = make(CASES["deepseek_v3"], tmp_path / "hf")
    config = read_json(hf / "config.json") | {"num_nextn_predict_layers": 1}
    (hf / "config.json").write_text(json.dumps(config))
    back = there_and_back(hf, tmp_path)
    assert same_bits(weights(hf), weights(back))
    assert read_json(back / "config.json")["num_nextn_predict_layers"] == 0

    hf = predicting("deepseek_v3", tmp_path / "predicting", 1)
    (hf / "config.json").write_text(json.dumps(read_json(hf / "config.json") | {"num_nextn_predict_layers": 0}))
    (tmp_path / "other").mkdir()
    assert same_bits(weights(hf), weights(there_and_back(hf, tmp_path / "other")))


def test_shared_matrices_are_written_again_and_compared(tmp_path: Path) -> None:
    hf = predicting("deepseek_v3", tmp_path / "hf", 1)
    whole = weights(hf)
    copies = {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}
    save_file({name: tensor for name, tensor in whole.items() if name not in copies}, hf / "model.safetensors")
    assert same_bits(weights(there_and_back(hf, tmp_path)), whole)

    save_file(whole | {"model.layers.3.shared_head.head.weight": whole["lm_head.weight"] + 1}, hf / "model.safetensors")
    with pytest.raises(UserError, match=r"shared_head\.head\.weight is not lm_head\.weight, which it should repeat"):
        from_hf(hf, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.dist
@pytest.mark.parametrize("name", PREDICTING)
def test_prediction_logits_are_those_of_transformers_layers(ranks: RankPool, tmp_path: Path, name: str) -> None:
    hf = predicting(name, tmp_path / "hf", 1)
    from_hf(hf, tmp_path / "megatron")
    arguments = (str(run_config(tmp_path / "megatron")), str(tmp_path / "megatron"), IDS)
    (((ours,)),) = ranks.run(1, predictions_of_checkpoint, *arguments, timeout_s=120)
    theirs = predicted_by_transformers(hf, IDS)
    difference = (ours - theirs)[:, :-1].abs().max().item()  # the last position has no next token
    print(f"{name}: prediction logits of std {theirs.std():.2f} differ by at most {difference:.1e}")
    assert difference <= 1e-5
    assert torch.equal(ours[:, :-1].argmax(-1), theirs[:, :-1].argmax(-1))


def predicted_by_transformers(hf: Path, ids: torch.Tensor) -> torch.Tensor:
    """[b, s, vocab]: the module's logits, put together from transformers' layers; its own layer is loaded as one more.

    DeepSeek-V3's equations 21 to 23; the layers before it end with the model's norm.
    """
    config = read_json(hf / "config.json")
    layers = config["num_hidden_layers"]
    tensors = weights(hf)
    longer = hf.parent / "longer"
    longer.mkdir()
    extra = (f"layers.{layers}.{name}" for name in ("enorm", "hnorm", "eh_proj", "shared_head", "embed_tokens"))
    left_out = tuple(f"model.{name}" for name in extra)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}
    save_file(kept, longer / "model.safetensors")
    (longer / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers + 1}))
    loaded, info = AutoModelForCausalLM.from_pretrained(longer, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    body = loaded.model
    norm = torch.nn.functional.rms_norm
    size, eps = (config["hidden_size"],), config["rms_norm_eps"]
    positions = torch.arange(ids.shape[1])[None]
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        hidden = body.embed_tokens(ids)
        rope = body.rotary_emb(hidden, position_ids=positions)
        for layer in body.layers[:layers]:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rope, position_ids=positions)
        hidden = body.norm(hidden)
        given = {name: tensors[f"model.layers.{layers}.{name}.weight"] for name in ("enorm", "hnorm", "eh_proj")}
        following = norm(body.embed_tokens(ids.roll(-1, dims=1)), size, given["enorm"], eps)
        mixed = torch.cat((following, norm(hidden, size, given["hnorm"], eps)), dim=-1) @ given["eh_proj"].t()
        mixed = body.layers[layers](mixed, attention_mask=mask, position_embeddings=rope, position_ids=positions)
        head = norm(mixed, size, tensors[f"model.layers.{layers}.shared_head.norm.weight"], eps)
        return loaded.lm_head(head)


DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 4096,
}
COMMON = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False}
V3 = COMMON | {
    "model_type": "deepseek_v3",
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
V2_LITE = COMMON | {
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}
V2 = V2_LITE | {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}
KIMI_K2 = V3 | {
    "model_type": "kimi_k2",
    "first_k_dense_replace": 1,
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": DEEPSEEK_YARN | {"factor": 32.0, "beta_fast": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}
QWEN3_30B = COMMON | {
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GLM_AIR = COMMON | {
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "use_qk_norm": False,
    "vocab_size": 151552,
}
QWEN2_57B = COMMON | {
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "moe_intermediate_size": 2560,
    "norm_topk_prob": False,
    "num_attention_heads": 28,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 20480,
    "sliding_window": 65536,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "deepseek_v3": (
        V3,
        {
            "moe_layer_freq": (0,) * 3 + (1,) * 58,
            "moe_router_num_groups": 8,
            "moe_router_group_topk": 4,
            "moe_router_topk_scaling_factor": 2.5,
            "moe_shared_expert_intermediate_size": 2048,
            "moe_router_score_function": "sigmoid",
            "moe_router_dtype": "fp32",
            "mtp_num_layers": 1,
        },
    ),
    "kimi_k2": (KIMI_K2, {"family": "deepseek_v3", "moe_router_num_groups": None, "mtp_num_layers": None}),
    "deepseek_v2_lite": (
        V2_LITE,
        {
            "moe_router_num_groups": None,
            "q_lora_rank": None,
            "moe_shared_expert_intermediate_size": 2816,
            "moe_router_pre_softmax": True,
            "moe_router_topk_scaling_factor": None,
        },
    ),
    "deepseek_v2": (
        V2,
        {
            "moe_router_topk": 6,
            "moe_router_num_groups": 8,
            "moe_router_group_topk": 3,
            "moe_router_group_score": "max",
            "moe_router_topk_scaling_factor": 16.0,
            "moe_shared_expert_intermediate_size": 3072,
        },
    ),
    "qwen3_30b": (QWEN3_30B, {"moe_layer_freq": 1, "moe_router_pre_softmax": False, "moe_ffn_hidden_size": 768}),
    "qwen2_57b": (QWEN2_57B, {"moe_router_pre_softmax": True, "window_size": None, "add_qkv_bias": True}),
    "glm_4_5_air": (
        GLM_AIR,
        {"rotary_percent": 0.5, "add_qkv_bias": True, "qk_layernorm": False, "moe_layer_freq": (0,) + (1,) * 45},
    ),
}


def read(config: dict[str, Any]) -> Model:
    """Our model section of a config.json."""
    return from_hf_config(family_of(config["model_type"]), config, "config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written(name: str) -> None:
    config, expected = PUBLISHED[name]
    model = read(config)
    assert {key: getattr(model, key) for key in expected} == expected
    written = to_hf_config(family(model.family), model, torch.bfloat16, {})
    assert read(written) == model
    same = config.keys() & written.keys() - {"model_type", "rope_scaling"}
    assert {key: written[key] for key in same} == {key: config[key] for key in same}


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "v2-groups": (V2, {"topk_group": None}, "n_group without topk_group"),
    "v3-groups": (
        V3,
        {"num_experts_per_tok": 4},
        "groups scored by their best 2 experts: megatron-core takes 4 // 4 = 1",
    ),
    "v2-method": (V2, {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
    "v2-normalised": (V2_LITE, {"norm_topk_prob": True}, "norm_topk_prob is True"),
    "v3-not-normalised": (V3, {"norm_topk_prob": False}, "norm_topk_prob is False"),
    "v3-softmax": (V3, {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    "v3-one-expert": (V3, {"num_experts_per_tok": 1, "n_group": 1}, "one expert a token with a sigmoid's score"),
    "v3-halves": (V3, {"rope_interleave": False}, "rope_interleave is False"),
    "v3-biases": (V3, {"attention_bias": True}, "attention_bias is True"),
    "v3-linear": (V3, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' with latent attention"),
    "v3-one-mscale": (V3, {"rope_scaling": YARN | {"mscale": 1.0}}, "one of mscale and mscale_all_dim"),
    "v3-truncate": (V3, {"rope_scaling": YARN | {"truncate": False}}, "truncate: false"),
    "v3-grouped-heads": (V3, {"num_key_value_heads": 8}, "num_key_value_heads 8 with latent attention"),
    "v3-no-shared": (V3, {"n_shared_experts": 0}, "n_shared_experts is none"),
    "v3-sparse-layers": (V3, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    "v3-no-layers": (V3, {"first_k_dense_replace": None}, "no first_k_dense_replace"),
    "v3-tied": (V3, {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
    "v3-quantized": (V3, {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    "qwen3-window": (QWEN3_30B, {"use_sliding_window": True}, "use_sliding_window is True"),
    "qwen2-no-bias": (QWEN2_57B, {"qkv_bias": False}, "qkv_bias is False"),
    "qwen3-no-width": (QWEN3_30B, {"moe_intermediate_size": None}, "no moe_intermediate_size"),
    "glm-not-normalised": (GLM_AIR, {"norm_topk_prob": False}, "norm_topk_prob is False"),
    "glm-tied": (GLM_AIR, {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_megatron_core_computes_otherwise_is_refused(name: str) -> None:
    config, change, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        read(config | change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


NOT_CARRIED: dict[str, tuple[str, dict[str, Any], str]] = {
    "softmax": ("deepseek_v3", {"moe_router_score_function": "softmax"}, "moe_router_score_function"),
    "no-bias": ("deepseek_v3", {"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias"),
    "gate": ("deepseek_v3", {"moe_shared_expert_gate": True}, "moe_shared_expert_gate"),
    "no-shared": ("deepseek_v3", {"moe_shared_expert_intermediate_size": None}, "moe_shared_expert_intermediate_size"),
    "uneven-shared": ("deepseek_v3", {"moe_shared_expert_intermediate_size": 1000}, "no multiple"),
    "dense-last": ("deepseek_v3", {"moe_layer_freq": (1,) * 60 + (0,)}, "a dense layer follows"),
    "groups": ("deepseek_v3", {"moe_router_topk": 4}, "groups scored by their best 2"),
    "one-expert": ("deepseek_v3", {"moe_router_topk": 1}, "one expert a token"),
    "tied": ("glm_4_5_air", {"tie_embeddings": True}, "tie_embeddings"),
    "sinkhorn": ("qwen3_30b", {"moe_router_load_balancing_type": "sinkhorn"}, "sinkhorn"),
    "sums-of-groups": (
        "deepseek_v2",
        {"moe_router_group_score": "sum"},
        "moe_router_group_score: sum, of 2 experts; DeepSeek-V2 takes the best one",
    ),
    "best-of-groups": ("deepseek_v3", {"moe_router_group_score": "max"}, "moe_router_group_score"),
    "pre-softmax": ("deepseek_v2_lite", {"moe_router_pre_softmax": False}, "moe_router_pre_softmax"),
}


@pytest.mark.parametrize("name", NOT_CARRIED)
def test_what_no_config_json_can_say_is_refused(name: str) -> None:
    published, change, words = NOT_CARRIED[name]
    model = dataclasses.replace(read(PUBLISHED[published][0]), **change)
    with pytest.raises(UserError) as caught:
        to_hf_config(family(model.family), model, torch.bfloat16, {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


NO_GROUPS = {"moe_router_num_groups": None, "moe_router_group_topk": None}


@pytest.mark.parametrize("change", [{"moe_router_topk": 5}, {"moe_router_group_topk": 8}, NO_GROUPS])
def test_a_sum_that_chooses_as_the_best_expert_does_is_written(change: dict[str, Any]) -> None:
    best = dataclasses.replace(read(V2), **change)
    summed = dataclasses.replace(best, moe_router_group_score="sum")
    written = to_hf_config(family("deepseek_v2"), summed, torch.bfloat16, {})
    assert written == to_hf_config(family("deepseek_v2"), best, torch.bfloat16, {})
    assert read(written) == best
