"""Rules of the optimizer, its schedule and gradient reduction."""

from __future__ import annotations

from megatron_lm_zh.config.rules.batch import one_run_length
from megatron_lm_zh.config.rules.rule import rule
from megatron_lm_zh.config.schedules import WarmupStableDecay
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

_RUN_LENGTH = ("train.steps", "train.tokens", "train.global_batch_size", "model.seq_length")


@rule("schedule.min_lr", "optim.lr")
def min_lr_is_below_lr(config: Config, world: int | None) -> UserError | None:
    """A schedule decays from optim.lr down to min_lr."""
    lowest = getattr(config.schedule, "min_lr", 0.0)
    if lowest <= config.optim.lr:
        return None
    return UserError(
        f"schedule.min_lr: {lowest:g} is more than optim.lr={config.optim.lr:g}", expected="at most optim.lr"
    )


@rule("schedule.warmup_steps", *_RUN_LENGTH)
def warmup_ends_in_the_run(config: Config, world: int | None) -> UserError | None:
    """A warm-up as long as the run would never reach optim.lr, and leaves no step to decay over."""
    if one_run_length.check(config, world):
        return None
    warmup, total = config.schedule.warmup_steps, config.total_steps
    if warmup < total:
        return None
    what = f"schedule.warmup_steps: {warmup} fills the run of {total} steps"
    return UserError(what, expected=f"at most {total - 1}")


@rule("schedule.decay_steps", "schedule.warmup_steps", *_RUN_LENGTH)
def decay_follows_warmup(config: Config, world: int | None) -> UserError | None:
    """The final decay of a warm-up-stable-decay schedule begins after its warm-up."""
    if not isinstance(config.schedule, WarmupStableDecay) or one_run_length.check(config, world):
        return None
    warmup, decay, total = config.schedule.warmup_steps, config.schedule.decay_steps, config.total_steps
    if warmup + decay <= total:
        return None
    what = f"schedule.decay_steps: warmup_steps={warmup} + decay_steps={decay} is more than the run's {total} steps"
    return UserError(what, expected=f"at most {max(total - warmup, 0)}")


@rule("ddp.overlap_param_gather", "ddp.overlap_grad_reduce", "optim.use_distributed_optimizer")
def param_gather_has_shards(config: Config, world: int | None) -> UserError | None:
    """Only the distributed optimizer has parameters to gather, and it gathers them through the gradients' buckets."""
    if not config.ddp.overlap_param_gather:
        return None
    needed = {
        "optim.use_distributed_optimizer": config.optim.use_distributed_optimizer,
        "ddp.overlap_grad_reduce": config.ddp.overlap_grad_reduce,
    }
    missing = [f"{key}: true" for key, given in needed.items() if not given]
    if not missing:
        return None
    return UserError(f"ddp.overlap_param_gather: needs {' and '.join(missing)}")


RULES = (min_lr_is_below_lr, warmup_ends_in_the_run, decay_follows_warmup, param_gather_has_shards)
