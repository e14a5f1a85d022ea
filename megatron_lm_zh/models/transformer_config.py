"""Config to megatron-core's TransformerConfig: every section that says something of the network, in its words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.activations import squared_relu
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from megatron_lm_zh import compat
from megatron_lm_zh.config import passthrough
from megatron_lm_zh.config.schema import Config, Model, Parallel
from megatron_lm_zh.config.sections.rope_scaling import YarnScaling
from megatron_lm_zh.models.precision import kernel_arguments, precision_arguments
from megatron_lm_zh.runtime.device import Device

Arguments = dict[str, Any]


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by the tanh formula (Hendrycks and Gimpel 2016), elementwise, whatever is fused."""
    return torch.nn.functional.gelu(x, approximate="tanh")


# Name: activation function, whether a gate multiplies it.
ACTIVATIONS: dict[str, tuple[Callable[..., torch.Tensor], bool]] = {
    "swiglu": (torch.nn.functional.silu, True),
    "geglu": (torch.nn.functional.gelu, True),
    "gelu": (torch.nn.functional.gelu, False),
    "gelu_tanh": (gelu_tanh, False),
    "squared_relu": (squared_relu, False),
}

# Fields of our model section that megatron-core has under the same name and with the same meaning.
NETWORK = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "ffn_hidden_size",
    "normalization",
    "layernorm_epsilon",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "window_size",
    "mtp_num_layers",
    "mtp_loss_scaling_factor",
    "init_method_std",
    "attention_dropout",
    "hidden_dropout",
)
LATENT_ATTENTION = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
EXPERTS = (
    "num_moe_experts",
    "moe_layer_freq",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
    "moe_shared_expert_overlap",
    "moe_router_topk",
    "moe_router_score_function",
    "moe_router_pre_softmax",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_topk_scaling_factor",
    "moe_router_enable_expert_bias",
    "moe_router_bias_update_rate",
    "moe_router_dtype",
    "moe_router_load_balancing_type",
    "moe_token_dispatcher_type",
    "moe_flex_dispatcher_backend",
    "moe_expert_capacity_factor",
    "moe_pad_expert_input_to_capacity",
    "moe_token_drop_policy",
    "moe_grouped_gemm",
    "moe_permute_fusion",
)
MEMORY = (
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "distribute_saved_activations",
    "fine_grained_activation_offloading",
    "cuda_graph_impl",
)
PIPELINE = (
    "microbatch_group_size_per_vp_stage",
    "pipeline_model_parallel_layout",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "tp_comm_overlap",
)


def transformer_config(config: Config, device: Device) -> TransformerConfig:
    """megatron-core's config of the model, its layout and its precision."""
    model = config.model
    kind = MLATransformerConfig if model.multi_latent_attention else TransformerConfig
    arguments = (
        _network(model)
        | _latent_attention(model)
        | _experts(config)
        | _memory(model)
        | _layout(config.parallel, experts=model.num_moe_experts is not None)
        | precision_arguments(config)
        | kernel_arguments(config, device)
        | {
            # The loss is a sum over tokens and is divided by their number once, so that it does not depend on how the
            # batch was cut into micro-batches.
            "calculate_per_token_loss": True,
            "deterministic_mode": config.run.deterministic,
            "transformer_impl": "transformer_engine" if device.transformer_engine else "local",
        }
        | passthrough.arguments(kind, model.megatron)
    )
    return kind(**arguments)


def _same(section: object, names: tuple[str, ...]) -> Arguments:
    return {name: getattr(section, name) for name in names}


def _network(model: Model) -> Arguments:
    function, gated = ACTIVATIONS[model.activation]
    windowed = model.window_attn_skip_freq
    return _same(model, NETWORK) | {
        "activation_func": function,
        "gated_linear_unit": gated,
        "window_attn_skip_freq": list(windowed) if isinstance(windowed, tuple) else windowed,
    }


def _latent_attention(model: Model) -> Arguments:
    if not model.multi_latent_attention:
        return {}
    arguments = _same(model, LATENT_ATTENTION) | {
        "rope_type": "rope",
        "rotary_base": model.rotary_base,
        "rotary_percent": model.rotary_percent,
    }
    if isinstance(model.rope_scaling, YarnScaling):
        scaling = model.rope_scaling
        arguments |= {
            "rope_type": "yarn",
            "rotary_scaling_factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "mscale": 1.0 if scaling.mscale is None else scaling.mscale,
            "mscale_all_dim": scaling.mscale_all_dim or 0.0,
        }
    return arguments


def _experts(config: Config) -> Arguments:
    model, layout = config.model, config.parallel
    if model.num_moe_experts is None:
        return {}
    frequency = model.moe_layer_freq
    missing = partial(
        compat.missing_factor_of_router_loss,
        shards=layout.tensor * layout.context,
        micro_batch_size=config.train.micro_batch_size,
        replicas=parallel_state.get_data_parallel_world_size(),
    )
    z_loss = model.moe_z_loss_coeff
    return _same(model, EXPERTS) | {
        "moe_aux_loss_coeff": model.moe_aux_loss_coeff * missing(model.moe_router_load_balancing_type),
        "moe_z_loss_coeff": z_loss and z_loss * missing("z_loss"),
        "moe_layer_freq": frequency if isinstance(frequency, int) else list(frequency),
        "moe_ffn_hidden_size": model.moe_ffn_hidden_size or model.ffn_hidden_size,
    }


def _memory(model: Model) -> Arguments:
    arguments = _same(model, MEMORY) | {"offload_modules": list(model.offload_modules)}
    if model.recompute_granularity == "selective":
        arguments["recompute_modules"] = list(model.recompute_modules)
    return arguments


def _layout(parallel: Parallel, *, experts: bool) -> Arguments:
    interleaved = parallel.virtual_pipeline > 1
    arguments = _same(parallel, PIPELINE) | {
        "tensor_model_parallel_size": parallel.tensor,
        "sequence_parallel": parallel.sequence,
        "pipeline_model_parallel_size": parallel.pipeline,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline if interleaved else None,
        # Batched sends between the same two ranks are mismatched by the interleaved schedule, silently.
        "overlap_p2p_comm": interleaved and parallel.overlap_p2p_comm,
        "batch_p2p_comm": not (interleaved and parallel.overlap_p2p_comm),
        "context_parallel_size": parallel.context,
        "cp_comm_type": parallel.cp_comm_type,
    }
    if parallel.hierarchical_context_parallel_sizes is not None:
        arguments["hierarchical_context_parallel_sizes"] = list(parallel.hierarchical_context_parallel_sizes)
    if experts:
        arguments |= {
            "expert_model_parallel_size": parallel.expert,
            "expert_tensor_parallel_size": parallel.expert_tensor,
        }
    return arguments
