"""Config to optimizer: megatron-core's optimizer and its scheduler of learning rate and weight decay."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_lm_zh.config import passthrough
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.models.precision import DTYPES, gathers_mxfp8_in_gradients
from megatron_lm_zh.optim.adamw import use_as_fused_adam
from megatron_lm_zh.optim.momentum import restorable

# Fields of our optim and precision sections that megatron-core has under the same name and with the same meaning.
OPTIM = (
    "optimizer",
    "lr",
    "decoupled_lr",
    "decoupled_min_lr",
    "weight_decay",
    "apply_wd_to_qk_layernorm",
    "adam_beta1",
    "adam_beta2",
    "adam_eps",
    "sgd_momentum",
    "clip_grad",
    "use_distributed_optimizer",
    "use_precision_aware_optimizer",
)
LOSS_SCALE = ("loss_scale", "initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis")
FORMATS = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")

STATE_DTYPES = DTYPES | {"fp8": torch.uint8}  # Transformer Engine keeps FP8 states as bytes with a scale


def optimizer_config(config: Config) -> OptimizerConfig:
    """megatron-core's config of the optimizer."""
    optim, precision = config.optim, config.precision
    arguments: dict[str, Any] = {name: getattr(optim, name) for name in OPTIM}
    arguments |= {name: STATE_DTYPES[getattr(optim, name)] for name in FORMATS}
    arguments |= {
        "min_lr": _schedule_arguments(config)["min_lr"],
        "overlap_param_gather": config.ddp.overlap_param_gather,
        "params_dtype": DTYPES[precision.dtype],
        "bf16": precision.dtype == "bf16",
        "fp16": precision.dtype == "fp16",
        "fp8_recipe": precision.fp8_recipe if precision.fp8 else None,
        "reuse_grad_buf_for_mxfp8_param_ag": gathers_mxfp8_in_gradients(config),
    }
    if precision.dtype == "fp16":
        arguments |= {name: getattr(precision, name) for name in LOSS_SCALE}
    if optim.optimizer == "muon":
        arguments["muon_tp_mode"] = "duplicated"  # whole matrices, so that the layout does not change the update
    if optim.optimizer_cpu_offload:
        arguments |= {
            "optimizer_cpu_offload": True,
            "optimizer_offload_fraction": optim.optimizer_offload_fraction,
        }
    return OptimizerConfig(**(arguments | passthrough.arguments(OptimizerConfig, optim.megatron)))


def build_optimizer(config: Config, model: list[DistributedDataParallel]) -> MegatronOptimizer:
    """The optimizer of this rank's parameters.

    Its ``step()`` gives (updated, gradient norm, _). With a dynamic loss scale (fp16) `updated` is False, and the norm
    None, where a gradient overflowed: nothing was changed but the scale, and the schedule must not move either.

    Raises:
        UserError: a pattern of `optim.no_weight_decay` names no parameter.
    """
    use_as_fused_adam()
    _check_patterns(config.optim.no_weight_decay, model)
    engine = optimizer_config(config)
    return restorable(get_megatron_optimizer(engine, model, config_overrides=_groups(config, engine)))


def build_scheduler(config: Config, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """The scheduler; it counts updates, and `scheduler.step(n)` moves it n updates on."""
    optim = config.optim
    start, end = optim.start_weight_decay, optim.end_weight_decay
    return OptimizerParamScheduler(
        optimizer,
        max_lr=optim.lr,
        start_wd=optim.weight_decay if start is None else start,
        end_wd=optim.weight_decay if end is None else end,
        wd_incr_steps=config.total_steps,
        wd_incr_style=optim.weight_decay_incr_style,
        **_schedule_arguments(config),
    )


def _schedule_arguments(config: Config) -> dict[str, Any]:
    return config.schedule.scheduler_arguments(config.total_steps)


def _groups(config: Config, engine: OptimizerConfig) -> dict[ParamKey, dict[str, Any]]:
    """Which parameters have another learning rate or no weight decay, as megatron-core's overrides."""
    overrides: dict[ParamKey, dict[str, Any]] = get_standard_config_overrides(engine)
    for override in overrides.values():
        if "max_lr" in override:
            # A checkpoint's groups are told apart by this flag; without it both would be restored as the same group.
            override["is_decoupled_lr"] = True
    if config.optim.no_weight_decay:
        overrides[ParamKey(name=config.optim.no_weight_decay)] = {"wd_mult": 0.0}
    return overrides


def _check_patterns(patterns: tuple[str, ...], model: list[DistributedDataParallel]) -> None:
    if not patterns:
        return
    names = [name for chunk in model for name, _ in chunk.named_parameters()]
    mine = {pattern for pattern in patterns if fnmatch.filter(names, pattern)}
    everyone: list[set[str]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)  # a stage need not hold what a pattern names, but some stage must
    for pattern in patterns:
        if not any(pattern in found for found in everyone):
            raise UserError(
                f"optim.no_weight_decay: {pattern!r} names no parameter",
                expected=f"a pattern of names such as {names[-1]}",
                mend="patterns match whole names: begin with *",
            )
