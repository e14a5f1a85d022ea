"""Number formats and fused kernels, in the words of megatron-core's configs."""

from __future__ import annotations

from typing import Any

import torch

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.sections.rope_scaling import YarnScaling
from megatron_lm_zh.runtime.device import Device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_arguments(config: Config) -> dict[str, Any]:
    """TransformerConfig's arguments of the `precision` section."""
    precision = config.precision
    dtype = DTYPES[precision.dtype]
    arguments: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "first_last_layers_bf16": precision.first_last_layers_bf16,
        "num_layers_at_start_in_bf16": precision.num_layers_at_start_in_bf16,
        "num_layers_at_end_in_bf16": precision.num_layers_at_end_in_bf16,
    }
    if precision.fp8 is not None:
        arguments |= {
            "fp8": precision.fp8,
            "fp8_recipe": precision.fp8_recipe,
            "fp8_param": precision.fp8_param_gather,
            "fp8_margin": precision.fp8_margin,
            "fp8_amax_history_len": precision.fp8_amax_history_len,
            "fp8_amax_compute_algo": precision.fp8_amax_compute_algo,
        }
    if precision.fp4 is not None:
        arguments |= {"fp4": precision.fp4, "fp4_recipe": "nvfp4"}
    return arguments


def gradient_arguments(config: Config) -> dict[str, Any]:
    """DistributedDataParallelConfig's arguments that follow from the number formats."""
    return {
        "grad_reduce_in_fp32": config.precision.dtype != "fp32" and config.optim.main_grads_dtype == "fp32",
        "fp8_param_gather": config.precision.fp8_param_gather,
        "reuse_grad_buf_for_mxfp8_param_ag": gathers_mxfp8_in_gradients(config),
    }


def gathers_mxfp8_in_gradients(config: Config) -> bool:
    """Whether MXFP8 weights are gathered through the gradients' buffer: their own storage has no place for a gather."""
    precision = config.precision
    return precision.fp8_param_gather and precision.fp8_recipe == "mxfp8" and not config.ddp.use_megatron_fsdp


def kernel_arguments(config: Config, device: Device) -> dict[str, Any]:
    """TransformerConfig's arguments of the `kernels` section: where it leaves one open, what the device has."""
    kernels = config.kernels
    available = {
        "bias_activation_fusion": has_fused_activation(config),  # one function, compiled where torch.compile is
        "bias_dropout_fusion": device.fused,
        "masked_softmax_fusion": False,  # neither attention has a separate softmax
        "apply_rope_fusion": has_fused_rope(config),
        "gradient_accumulation_fusion": device.transformer_engine,
        # megatron-core's is not deterministic and has no z-loss; ours is, and has.
        "cross_entropy_loss_fusion": device.fused and not (config.run.deterministic or config.train.z_loss_coeff),
    }
    asked = {name: getattr(kernels, name) for name in available}
    return {name: available[name] if asked[name] is None else asked[name] for name in available}


def has_fused_activation(config: Config) -> bool:
    """Whether megatron-core has this MLP's bias and activation in one function."""
    model = config.model
    if model.activation == "swiglu":
        return True
    if model.num_moe_experts is not None:
        return False  # the functions that weigh an expert's output are SwiGLU's
    return model.activation == "geglu" or (model.activation == "gelu" and model.add_bias_linear)


def has_fused_rope(config: Config) -> bool:
    """Whether one kernel can rotate this model's queries and keys: Transformer Engine's, or ours in models/rope.py."""
    model = config.model
    rotates = model.position_embedding_type == "rope" and not model.multi_latent_attention
    return rotates and not isinstance(model.rope_scaling, YarnScaling)  # megatron-core scales YaRN's channels unfused
