"""Config to optimizer: megatron-core's optimizer and its scheduler of learning rate and weight decay."""

from __future__ import annotations

from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_lm_zh.config import passthrough
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.models.build import DTYPES
from megatron_lm_zh.optim.adamw import use_as_fused_adam


def optimizer_config(config: Config) -> OptimizerConfig:
    """megatron-core's config of the optimizer."""
    optim = config.optim
    dtype = DTYPES[config.precision.dtype]
    arguments: dict[str, Any] = {
        "optimizer": "adam",
        "lr": optim.lr,
        "min_lr": _schedule_arguments(config)["min_lr"],
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.adam_beta1,
        "adam_beta2": optim.adam_beta2,
        "adam_eps": optim.adam_eps,
        "clip_grad": optim.clip_grad,
        "use_distributed_optimizer": optim.use_distributed_optimizer,
        "overlap_param_gather": config.ddp.overlap_param_gather,
        "params_dtype": dtype,
        "bf16": config.precision.dtype == "bf16",
    }
    return OptimizerConfig(**(arguments | passthrough.arguments(OptimizerConfig, optim.megatron)))


def build_optimizer(config: Config, model: list[DistributedDataParallel]) -> MegatronOptimizer:
    """The optimizer of this rank's parameters."""
    use_as_fused_adam()
    return get_megatron_optimizer(optimizer_config(config), model)


def build_scheduler(config: Config, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """The scheduler; it counts optimizer steps, and `scheduler.step(n)` moves it n steps on."""
    weight_decay = config.optim.weight_decay
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0 if config.schedule.warmup_steps else config.optim.lr,
        max_lr=config.optim.lr,
        start_wd=weight_decay,
        end_wd=weight_decay,
        wd_incr_steps=config.total_steps,
        wd_incr_style="constant",
        **_schedule_arguments(config),
    )


def _schedule_arguments(config: Config) -> dict[str, Any]:
    return config.schedule.scheduler_arguments(config.total_steps)
