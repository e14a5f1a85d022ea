"""The `optim` and `ddp` sections: the optimizer and the reduction of its gradients."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Optim:
    """The optimizer."""

    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    """AdamW (Loshchilov & Hutter 2019), SGD with momentum, or Muon (Jordan et al. 2024) for the layers' matrices and
    AdamW for the rest (megatron-core 0.19 with emerging-optimizers)."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    decoupled_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the word embedding and the output layer. Default: lr."""
    decoupled_min_lr: float | None = Field(default=None, ge=0)
    """Learning rate of the word embedding and the output layer at the end. Default: schedule.min_lr."""
    freeze_body_steps: int = Field(default=0, ge=0)
    """Steps at the beginning that train new rows of an extended vocabulary alone: those of the word embedding and the
    output layer from base_vocab_size on. All other weights keep every bit."""
    base_vocab_size: int | None = Field(default=None, gt=0)
    """First id whose rows freeze_body_steps trains. Default: what extension.json beside the tokenizer says."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of matrices; norms and biases have none. It is decoupled; with SGD it is added to the gradient."""
    no_weight_decay: tuple[str, ...] = ()
    """Further parameters without weight decay, as patterns of their names, e.g. `*.router.*` or `*embeddings*`."""
    apply_wd_to_qk_layernorm: bool = False
    """Decay the norms of queries and keys, too (Qwen3-Next)."""
    start_weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay of the first step of a ramp. Default: weight_decay."""
    end_weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay at the end of a ramp, which must not be less. Default: weight_decay."""
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight decay goes from start to end over the run."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Adam's second moment."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    sgd_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    use_distributed_optimizer: bool = False
    """Shard optimizer states over the data-parallel ranks (ZeRO-1)."""
    use_precision_aware_optimizer: bool = False
    """Keep moments and master weights in the formats below, through Transformer Engine's fused Adam."""
    main_grads_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision-aware optimizer: format of the gradients."""
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    """Precision-aware optimizer: format of the master weights."""
    exp_avg_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Precision-aware optimizer: format of the first moment."""
    exp_avg_sq_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Precision-aware optimizer: format of the second moment."""
    optimizer_cpu_offload: bool = False
    """Keep optimizer states in the host's memory and update there (GPUs)."""
    optimizer_offload_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the states that is offloaded."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Further fields of megatron-core's OptimizerConfig, by their own names."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Ddp:
    """Gradient reduction over the data-parallel ranks."""

    overlap_grad_reduce: bool = False
    """Reduce gradients bucket by bucket while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass goes on (needs the distributed optimizer)."""
    use_megatron_fsdp: bool = False
    """Shard parameters and gradients over the data-parallel ranks, too (Megatron-FSDP)."""
    data_parallel_sharding_strategy: Literal["optim", "optim_grads", "optim_grads_params"] = "optim_grads_params"
    """Megatron-FSDP: what is sharded (ZeRO-1, ZeRO-2, ZeRO-3)."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Further fields of megatron-core's DistributedDataParallelConfig, by their own names."""
