"""Makes of a torch_dist checkpoint what Megatron-Bridge saves: its run_config.yaml, no arguments in common.pt.

The keys of the model section and the way functions, dtypes and enumerations are written are those of a file of
Llama 3.2 1B printed in verdimrc/playground-nemo-2.0-gh (05-byoc-te-mb/with-ngc-pytorch-25.06-cleanup.md) and of
Megatron-Bridge's src/megatron/bridge/utils/yaml_utils.py; the nested form is that of its models/gpt/model_config.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from megatron_lm_zh.config.schema import Model

_SAME = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "ffn_hidden_size",
    "seq_length",
    "vocab_size",
    "make_vocab_size_divisible_by",
    "normalization",
    "layernorm_epsilon",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "window_size",
    "window_attn_skip_freq",
    "position_embedding_type",
    "rotary_percent",
    "multi_latent_attention",
    "mtp_num_layers",
    "init_method_std",
    "attention_dropout",
    "hidden_dropout",
    "num_moe_experts",
    "moe_ffn_hidden_size",
    "moe_router_topk",
    "moe_router_score_function",
    "moe_router_pre_softmax",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_topk_scaling_factor",
    "moe_router_enable_expert_bias",
    "moe_shared_expert_intermediate_size",
)
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
_OF_MODEL = ("vocab_size", "make_vocab_size_divisible_by", "seq_length", "position_embedding_type", "rotary_percent")
_NOISE: dict[str, Any] = {
    "activation_func_clamp_value": None,
    "apply_residual_connection_post_layernorm": False,
    "apply_rope_fusion": True,
    "attention_backend": {"_args_": [5], "_call_": True, "_target_": "megatron.core.transformer.enums.AttnBackend"},
    "attention_softmax_in_fp32": False,
    "autocast_dtype": {"_call_": False, "_target_": "torch.bfloat16"},
    "bias_activation_fusion": True,
    "fp8_recipe": "tensorwise",
    "glu_linear_offset": 0.0,
    "grad_scale_func": {"_call_": False, "_target_": "megatron.core.optimizer.optimizer.MegatronOptimizer.scale_loss"},
    "init_method": {"_args_": [], "_partial_": True, "_target_": "torch.nn.init.normal_", "mean": 0.0, "std": 0.02},
    "layernorm_zero_centered_gamma": False,
    "mamba_head_dim": 64,
    "masked_softmax_fusion": True,
    "moe_router_load_balancing_type": "aux_loss",
    "moe_router_topk_limited_devices": None,
    "moe_token_dispatcher_type": "allgather",
    "params_dtype": {"_call_": False, "_target_": "torch.float32"},
    "persist_layer_norm": False,
    "quant_recipe": None,
    "recompute_modules": ["core_attn"],
    "rotary_interleaved": False,
    "softmax_scale": None,
    "softmax_type": "vanilla",
    "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 2,
    "context_parallel_size": 1,
    "transformer_impl": "transformer_engine",
    "transformer_layer_spec": {
        "_call_": False,
        "_target_": "megatron.bridge.models.gpt_provider.default_layer_spec",
    },
    "virtual_pipeline_model_parallel_size": None,
}
GENERATION = {
    "_call_": True,
    "_target_": "transformers.generation.configuration_utils.GenerationConfig.from_dict",
    "config_dict": {"bos_token_id": 1, "eos_token_id": 2, "max_length": 20, "pad_token_id": None},
}


def run_config(model: Model, target: str, **changes: Any) -> dict[str, Any]:
    """A run_config.yaml of a model section; `changes` are made to its model."""
    values = {name: getattr(model, name) for name in _SAME}
    section = _NOISE | {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    frequency = model.moe_layer_freq
    section |= {
        "_target_": target,
        "activation_func": {"_call_": False, "_target_": "torch.nn.functional.silu"},
        "gated_linear_unit": True,
        "generation_config": GENERATION,
        "moe_layer_freq": frequency if isinstance(frequency, int) else list(frequency),
        "rotary_base": float(model.rotary_base),
        "share_embeddings_and_output_weights": model.tie_embeddings,
        "should_pad_vocab": True,
    }
    if model.multi_latent_attention:
        section |= {name: getattr(model, name) for name in _LATENT}
        section |= {"rope_type": "yarn", "rotary_scaling_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    train = {"_target_": "megatron.bridge.training.config.TrainingConfig", "exit_signal": {"_args_": [15]}}
    return {"model": section | changes, "peft": None, "train": train}


def nested(config: dict[str, Any]) -> dict[str, Any]:
    """The same as later versions write it: TransformerConfig's fields apart, functions by a word."""
    outer = {key: value for key, value in config["model"].items() if key in _OF_MODEL or key.startswith("_")}
    outer["share_embeddings_and_output_weights"] = config["model"]["share_embeddings_and_output_weights"]
    inner = {key: value for key, value in config["model"].items() if key not in outer} | {"activation_func": "silu"}
    inner["_target_"] = "megatron.core.transformer.transformer_config.MLATransformerConfig"
    outer |= {"_builder_": "megatron.training.models.gpt.GPTModelBuilder", "transformer": inner}
    return config | {"model": outer}


def as_bridge(checkpoint: Path, config: dict[str, Any]) -> Path:
    """Rewrites a torch_dist checkpoint of Megatron-LM in place."""
    (checkpoint / "run_config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"checkpoint_version": 3.0, "iteration": 7, "opt_param_scheduler": {}}, checkpoint / "common.pt")
    return checkpoint
