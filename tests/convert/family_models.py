"""One small random Hugging Face model for every family that converts, and what each of its config keys should do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from family_ranks import logits_of_checkpoint
from hf_models import logits
from safetensors.torch import save_file
from support.pool import RankPool

from megatron_lm_zh.config.document import read_document
from megatron_lm_zh.convert.megatron_files import MODEL_FILE

VOCAB = 131
IDS = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(3))
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 20000.0}
SIZES: Mapping[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": VOCAB,
    "max_position_embeddings": 96,
    "rope_parameters": DEFAULT_ROPE,
}

# Values of our model keys at which the same Hugging Face weights no longer fit.
SHAPES: Mapping[str, Any] = {
    "num_layers": 4,
    "hidden_size": 96,
    "num_attention_heads": 12,
    "num_query_groups": 3,
    "kv_channels": 16,
    "ffn_hidden_size": 96,
    "vocab_size": 130,
}
# Keys that no logit depends on.
INERT: Mapping[str, str] = {
    "max_position_embeddings": "says how long a text may be; rotary positions have no weights",
    "init_method_std": "says how training drew the first weights",
    "attention_dropout": "is there in training alone",
}
# Values of our model keys that give other logits from the same weights.
FLIPS: Mapping[str, str] = {"layernorm_epsilon": "0.01", "rotary_base": "500"}


@dataclass(frozen=True)
class Case:
    """A model of a family and what its config keys should do."""

    family: str
    """Value of `model.family`."""
    model: str
    """Class in transformers that makes it and, without `reference`, gives its logits."""
    options: Mapping[str, Any]
    """Arguments of the config class."""
    flips: Mapping[str, str] = field(default_factory=lambda: FLIPS)
    """Key of our model section to a value, in YAML, that changes logits and no weight's shape."""
    shapes: Mapping[str, Any] = field(default_factory=lambda: SHAPES)
    """Key of our model section to a value with which the weights are refused."""
    inert: Mapping[str, str] = field(default_factory=lambda: INERT)
    """Key of our model section to the reason why no logit depends on it."""
    with_flips: tuple[str, ...] = ()
    """Overrides of our config that are put before each flip, e.g. what a rule asks for."""
    disguise: (
        Callable[[dict[str, torch.Tensor], dict[str, Any]], tuple[dict[str, torch.Tensor], dict[str, Any]]] | None
    ) = None
    """Of a family that transformers does not have: the class's weights and config.json to the family's."""
    reference: Callable[[Path, torch.Tensor], torch.Tensor] = logits
    """(directory, ids [b, s]) to logits [b, s, vocab] by transformers."""
    rewritten: tuple[str, ...] = ()
    """Keys of transformers' config.json that the round trip does not keep, beside those that all lose."""


def make(case: Case, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Saves a random model with the names that transformers 4 gives weights; norms and biases are random, too."""
    torch.manual_seed(7)
    kind = getattr(transformers, case.model)
    model = kind(kind.config_class(**case.options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(0.5 if is_norm else 0.0, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.1)
    model.to(dtype).save_pretrained(directory)
    if case.disguise is not None:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del state["lm_head.weight"]
        weights, config = case.disguise(state, json.loads((directory / "config.json").read_text()))
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def run_config(checkpoint: Path) -> Path:
    """Writes the config of a run, at world 1 and in fp32, of the model that `from_hf` made a checkpoint of."""
    values = {
        "run": {"dir": str(checkpoint / "run")},
        "model": read_document(checkpoint / MODEL_FILE).values["model"],
        "precision": {"dtype": "fp32"},
        "data": {
            "tokenizer": {"type": "HuggingFace", "path": str(checkpoint)},
            "train": [{"path": str(checkpoint / "none")}],
        },
        "train": {"steps": 5, "micro_batch_size": 2, "global_batch_size": 4},
        "optim": {"lr": 0.01},
        "schedule": {"kind": "constant"},
    }
    path = checkpoint / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def megatron_logits(
    pool: RankPool, checkpoint: Path, ids: torch.Tensor, variants: list[list[str]] | None = None
) -> list[torch.Tensor]:
    """fp32 logits [b, s, vocab] that megatron-core gives with the weights of a checkpoint that `from_hf` made.

    Args:
        variants: overrides of the config, one list for each answer; default: the config as it is.
    """
    config = run_config(checkpoint)
    (answers,) = pool.run(1, logits_of_checkpoint, str(config), str(checkpoint), ids, variants or [[]], timeout_s=120)
    return answers  # type: ignore[no-any-return]


# What no network computes with: the weight of a training loss, and whether a forward pass returns more.
ROUTING = ("router_aux_loss_coef", "output_router_logits", "router_jitter_noise")
# Of windows that are switched off, and what latent attention's other sizes say already.
WINDOWS = ("sliding_window", "max_window_layers", "layer_types")
DERIVED = ("head_dim", "qk_head_dim")
EXPERT_SHAPES: Mapping[str, Any] = {**SHAPES, "tie_embeddings": True, "num_moe_experts": 12}
MIXTRAL_SHAPES: Mapping[str, Any] = {
    **{key: value for key, value in EXPERT_SHAPES.items() if key != "ffn_hidden_size"},
    "moe_ffn_hidden_size": 48,
}
SMALL_EXPERTS: Mapping[str, Any] = {**EXPERT_SHAPES, "moe_ffn_hidden_size": 48, "moe_layer_freq": (0, 1, 0)}
LATENT: Mapping[str, Any] = {
    **{key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
    "num_key_value_heads": 6,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
}
LATENT_SHAPES: Mapping[str, Any] = {
    **{key: value for key, value in SMALL_EXPERTS.items() if key not in ("num_query_groups", "kv_channels")},
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 16,
    "moe_shared_expert_intermediate_size": 96,
}
LATENT_INERT: Mapping[str, str] = {**INERT, "num_query_groups": "every head has its own keys; others are refused"}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.7,
    "mscale_all_dim": 1.1,
}

CASES: Mapping[str, Case] = {
    "mixtral": Case(
        "mixtral",
        "MixtralForCausalLM",
        {**SIZES, "head_dim": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
        flips={
            **FLIPS,
            "moe_router_topk": "3",
            "window_size": "[5, 0]",
            "rope_scaling": "{kind: linear, factor: 2.0}",
        },
        shapes=MIXTRAL_SHAPES,
        rewritten=ROUTING,
    ),
    "mixtral_window": Case(
        "mixtral",
        "MixtralForCausalLM",
        {**SIZES, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 7, "head_dim": 16},
        flips={
            **FLIPS,
            "moe_router_topk": "3",
            "window_size": "[7, 0]",
            "rope_scaling": "{kind: linear, factor: 2.0}",
        },
        shapes={**MIXTRAL_SHAPES, "kv_channels": 8},
        rewritten=ROUTING,
    ),
    "qwen2_moe": Case(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {
            **SIZES,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "mlp_only_layers": [1],
        },
        flips={
            **FLIPS,
            "moe_router_topk": "2",
            "moe_router_pre_softmax": "false",
            "rope_scaling": "{kind: linear, factor: 2.0}",
        },
        shapes={**SMALL_EXPERTS, "moe_shared_expert_intermediate_size": 80},
        rewritten=(*ROUTING, *WINDOWS),
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {
            **SIZES,
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
        },
        flips={
            **FLIPS,
            "moe_router_topk": "2",
            "moe_router_pre_softmax": "true",
            "rope_scaling": "{kind: linear, factor: 2.0}",
        },
        shapes={**SMALL_EXPERTS, "kv_channels": 8, "moe_layer_freq": 1},
        rewritten=(*ROUTING, *WINDOWS),
    ),
    "deepseek_v2_lite": Case(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {
            **LATENT,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        flips={
            **FLIPS,
            "moe_router_topk": "3",
            "rope_scaling": "null",
            "moe_router_topk_scaling_factor": "2.0",
        },
        shapes=LATENT_SHAPES,
        inert={
            **LATENT_INERT,
            "moe_router_num_groups": "the case deepseek_v2_groups has them",
            "moe_router_group_topk": "the case deepseek_v2_groups has them",
            "moe_router_group_score": "the case deepseek_v2_groups has them",
        },
        rewritten=(*ROUTING, *DERIVED),
    ),
    "deepseek_v2_groups": Case(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {
            **LATENT,
            "num_experts_per_tok": 6,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 3,
            "routed_scaling_factor": 16.0,
        },
        flips={
            **FLIPS,
            "moe_router_topk": "4",
            "rope_scaling": "{kind: yarn, factor: 4.0, original_max_position_embeddings: 24}",
            "moe_router_num_groups": "8",
            "moe_router_group_topk": "2",
            "moe_router_group_score": "sum",
            "moe_router_topk_scaling_factor": "2.0",
        },
        shapes=LATENT_SHAPES,
        inert=LATENT_INERT,
        rewritten=(*ROUTING, *DERIVED),
    ),
    "deepseek_v3": Case(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {
            **LATENT,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 0,
            "rope_parameters": YARN,
        },
        flips={
            **FLIPS,
            "moe_router_topk": "2",
            "rope_scaling": "null",
            "moe_router_num_groups": "8",
            "moe_router_group_topk": "3",
            "moe_router_topk_scaling_factor": "1.0",
        },
        shapes={**LATENT_SHAPES, "mtp_num_layers": 1},
        inert=LATENT_INERT,
        rewritten=(*ROUTING, *DERIVED),
    ),
    "deepseek_v3_without_groups": Case(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {
            **LATENT,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
            "num_nextn_predict_layers": 0,
        },
        flips={
            **FLIPS,
            "moe_router_topk": "2",
            "rope_scaling": "{kind: yarn, factor: 4.0, original_max_position_embeddings: 24}",
            "moe_router_topk_scaling_factor": "2.0",
        },
        shapes={
            **{key: value for key, value in LATENT_SHAPES.items() if key != "ffn_hidden_size"},
            "mtp_num_layers": 1,
        },
        inert={
            **LATENT_INERT,
            "ffn_hidden_size": "no layer is dense",
            "moe_router_num_groups": "the case deepseek_v3 has them",
            "moe_router_group_topk": "the case deepseek_v3 has them",
        },
        rewritten=(*ROUTING, *DERIVED),
    ),
    "glm4_moe": Case(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {
            **SIZES,
            "head_dim": 16,
            "rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.5},
            "attention_bias": True,
            "use_qk_norm": True,
            "moe_intermediate_size": 32,
            "n_routed_experts": 16,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 1,
            "num_nextn_predict_layers": 0,
        },
        flips={
            **FLIPS,
            "moe_router_topk": "2",
            "rotary_percent": "0.25",
            "rope_scaling": "{kind: linear, factor: 2.0}",
            "moe_router_num_groups": "8",
            "moe_router_group_topk": "3",
            "moe_router_topk_scaling_factor": "1.0",
        },
        shapes={
            **SMALL_EXPERTS,
            "kv_channels": 8,
            "moe_shared_expert_intermediate_size": 96,
            "add_qkv_bias": False,
            "qk_layernorm": False,
            "mtp_num_layers": 1,
        },
        rewritten=ROUTING,
    ),
}
"""Name of a case with experts to the case; a family may have several. The others are in dense_cases.py."""
