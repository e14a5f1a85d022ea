"""Config to model: megatron-core's TransformerConfig, GPTModel and DistributedDataParallel for this rank."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_lm_zh.config import passthrough
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.models.initialise import initialise
from megatron_lm_zh.models.loss import cross_entropy, hide_padding
from megatron_lm_zh.models.rope import use_as_fused_rope
from megatron_lm_zh.models.spec import block_spec
from megatron_lm_zh.runtime.device import Device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformer_config(config: Config, device: Device) -> TransformerConfig:
    """megatron-core's config of the model, its layout and its precision."""
    model = config.model
    dtype = DTYPES[config.precision.dtype]
    arguments: dict[str, Any] = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "ffn_hidden_size": model.ffn_hidden_size,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.layernorm_epsilon,
        "add_bias_linear": False,
        "init_method_std": model.init_method_std,
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
        "recompute_granularity": model.recompute_granularity,
        "recompute_method": model.recompute_method,
        "recompute_num_layers": model.recompute_num_layers,
        "tensor_model_parallel_size": config.parallel.tensor,
        "pipeline_model_parallel_size": config.parallel.pipeline,
        "sequence_parallel": config.parallel.sequence,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp8": config.precision.fp8,
        # The loss is a sum over tokens and is divided by their number once, so that it does not depend on how the batch
        # was cut into micro-batches.
        "calculate_per_token_loss": True,
        "deterministic_mode": config.run.deterministic,
        "bias_activation_fusion": True,  # one autograd function for SwiGLU, compiled where torch.compile is
        "bias_dropout_fusion": device.fused,
        "masked_softmax_fusion": False,  # neither attention has a separate softmax
        "apply_rope_fusion": True,
        "gradient_accumulation_fusion": device.transformer_engine,
        "cross_entropy_loss_fusion": device.fused,
    }
    arguments |= passthrough.arguments(TransformerConfig, model.megatron)
    use_as_fused_rope()
    return TransformerConfig(**arguments)


def ddp_config(config: Config) -> DistributedDataParallelConfig:
    """megatron-core's config of the gradient reduction."""
    arguments: dict[str, Any] = {
        "grad_reduce_in_fp32": config.precision.dtype != "fp32",
        "overlap_grad_reduce": config.ddp.overlap_grad_reduce,
        "overlap_param_gather": config.ddp.overlap_param_gather,
        "use_distributed_optimizer": config.optim.use_distributed_optimizer,
        "check_for_nan_in_grad": False,  # train/guards.py does it, with the step's number
    }
    return DistributedDataParallelConfig(
        **(arguments | passthrough.arguments(DistributedDataParallelConfig, config.ddp.megatron))
    )


class Gpt(GPTModel):
    """megatron-core's GPTModel, with our loss where megatron-core's fused one does not run.

    Args:
        true_vocab_size: ids that there are; `vocab_size` counts the rows of the embedding, which are more.
    """

    def __init__(self, *, true_vocab_size: int, **options: Any) -> None:
        super().__init__(**options)
        self.true_vocab_size = true_vocab_size

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Losses [b, s] of labels [b, s] under this rank's logits [s, b, v / t]."""
        logits = hide_padding(logits, self.true_vocab_size, self.pg_collection.tp)
        if self.config.cross_entropy_loss_fusion:
            return super().compute_language_model_loss(labels, logits)
        return cross_entropy(logits, labels.t(), self.pg_collection.tp).t().contiguous()


def build_gpt(config: Config, device: Device) -> GPTModel:
    """This rank's part of the model, initialised the same whatever the layout; config.model.vocab_size must be set."""
    assert config.model.vocab_size is not None
    megatron = transformer_config(config, device)
    model = Gpt(
        true_vocab_size=config.model.vocab_size,
        config=megatron,
        transformer_layer_spec=block_spec(megatron, device),
        vocab_size=padded_vocab_size(config),
        max_sequence_length=config.model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=config.model.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=config.model.rotary_base,
    ).to(device.torch_device)
    initialise(model, seed=config.run.seed, std=config.model.init_method_std, num_layers=config.model.num_layers)
    return model


def build_model(config: Config, device: Device) -> list[DistributedDataParallel]:
    """The model of this rank wrapped for training: one entry a model chunk, as megatron-core's schedules take it."""
    model: torch.nn.Module = build_gpt(config, device)
    megatron = model.config
    if megatron.bf16:
        model = Float16Module(megatron, model)
    wrapped = DistributedDataParallel(config=megatron, ddp_config=ddp_config(config), module=model)
    wrapped.broadcast_params()
    return [wrapped]


def padded_vocab_size(config: Config) -> int:
    """Rows of the embedding: the vocabulary rounded up to a multiple that does not depend on the layout."""
    assert config.model.vocab_size is not None
    multiple = config.model.make_vocab_size_divisible_by
    return -(-config.model.vocab_size // multiple) * multiple
