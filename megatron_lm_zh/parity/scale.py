"""A run at the smallest sizes that keep its features: every axis of the layout stays one, every rule stays kept."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from megatron_lm_zh.config.schedules import Schedule
from megatron_lm_zh.config.schema import Config, Profile, Train
from megatron_lm_zh.config.sections.optim import Optim
from megatron_lm_zh.config.sections.precision import Kernels, Precision
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.parity.small_layout import small_layout
from megatron_lm_zh.parity.small_network import small_network
from megatron_lm_zh.runtime.device import Device

LR = 1e-3
CLIP_GRAD = 0.1
"""Below the gradient norm of every step: a wrong norm shows in the loss only where clipping acts."""


def scaled_down(
    config: Config, device: Device, *, steps: int, ranks: int | None, fp32: bool, vocabulary: bool
) -> tuple[Config, int]:
    """The config for this machine, and the number of ranks to run it on.

    Args:
        device: what it lacks is switched off.
        steps: steps that are compared; the schedule is cut to them.
        ranks: how many; default: the fewest that hold the layout, twice as many where replicas must share gradients.
        fp32: whether to compare in fp32 whatever the config trains in.
        vocabulary: whether the token ids are ours to choose.

    Raises:
        UserError: `ranks` cannot hold the layout.
    """
    parallel, layers = small_layout(config, device)
    small = replace(
        config,
        parallel=parallel,
        model=small_network(config.model, layers, device, vocabulary=vocabulary),
        precision=_precision(config.precision, device, fp32=fp32),
        kernels=config.kernels if device.fused else Kernels(),
        optim=_optim(config, device, fp32=fp32),
        schedule=_schedule(config.schedule, steps / config.total_steps),
        profile=Profile(),
    )
    world = ranks or small.smallest_world * (2 if _lacks_replicas(small) else 1)
    if world % small.smallest_world:
        expected = f"a multiple of {small.smallest_world}, the ranks of one copy of the scaled-down model"
        raise UserError(f"--ranks {world}", expected=expected)
    return replace(small, train=_train(config.train, small, steps, world)), world


def _precision(precision: Precision, device: Device, *, fp32: bool) -> Precision:
    if fp32:
        return Precision(dtype="fp32")
    if device.transformer_engine:
        return precision
    return replace(precision, fp8=None, fp8_param_gather=False, first_last_layers_bf16=False, fp4=None)


def _optim(config: Config, device: Device, *, fp32: bool) -> Optim:
    changes: dict[str, Any] = {"lr": max(config.optim.lr, LR), "clip_grad": min(config.optim.clip_grad, CLIP_GRAD)}
    if fp32 or not device.transformer_engine:
        changes |= {"use_precision_aware_optimizer": False, "main_grads_dtype": "fp32", "main_params_dtype": "fp32"}
        changes |= {"exp_avg_dtype": "fp32", "exp_avg_sq_dtype": "fp32"}
    if not device.fused:
        changes |= {"optimizer_cpu_offload": False, "optimizer_offload_fraction": 1.0}
    return replace(config.optim, **changes)


def _lacks_replicas(small: Config) -> bool:
    shared = small.optim.use_distributed_optimizer or small.ddp.overlap_grad_reduce
    copy = small.parallel.tensor * small.parallel.pipeline
    if small.ddp.use_megatron_fsdp and small.model.num_moe_experts is not None:
        copy = max(copy, small.expert_replica_size)  # the experts, too, must be there twice
    return shared and small.smallest_world == copy


def _train(asked: Train, small: Config, steps: int, world: int) -> Train:
    """As many micro-batches as the pipeline needs, and more than one where there was more than one."""
    micro, parallel = min(asked.micro_batch_size, 2), small.parallel
    group = parallel.microbatch_group_size_per_vp_stage or parallel.pipeline
    row = micro * small.data_parallel_size(world) * group
    ramp = asked.rampup_batch_size is not None
    return replace(
        asked,
        steps=steps,
        tokens=None,
        micro_batch_size=micro,
        global_batch_size=2 * row,
        rampup_batch_size=(row, row, 4 * row) if ramp else None,
    )


def _schedule(schedule: Schedule, share: float) -> Schedule:
    """Numbers of steps cut to their share of the steps compared."""
    changes = {
        field.name: max(1, round(value * share))
        for field in fields(schedule)
        if field.name.endswith("_steps") and (value := getattr(schedule, field.name))
    }
    return replace(schedule, **changes)
