"""Rules of the optimizer, its schedule and gradient reduction."""

from __future__ import annotations

from megatron_lm_zh.config.rules.batch import one_run_length
from megatron_lm_zh.config.rules.rule import needs, rule
from megatron_lm_zh.config.schedules import WarmupStableDecay
from megatron_lm_zh.config.schema import Config, Ddp
from megatron_lm_zh.errors import UserError

_RUN_LENGTH = (
    "train.steps",
    "train.tokens",
    "train.global_batch_size",
    "train.rampup_batch_size",
    "model.seq_length",
)
_STATE_FORMATS = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")


@rule("schedule.min_lr", "optim.lr")
def min_lr_is_below_lr(config: Config, world: int | None) -> UserError | None:
    """A schedule decays from optim.lr down to min_lr."""
    lowest = getattr(config.schedule, "min_lr", 0.0)
    if lowest <= config.optim.lr:
        return None
    return UserError(
        f"schedule.min_lr: {lowest:g} is more than optim.lr={config.optim.lr:g}", expected="at most optim.lr"
    )


@rule("schedule.warmup_init_lr", "optim.lr", "optim.decoupled_lr")
def warmup_rises(config: Config, world: int | None) -> UserError | None:
    """A warm-up rises from warmup_init_lr to the peak, for the decoupled learning rate, too."""
    start, peak = config.schedule.warmup_init_lr, min(config.optim.lr, config.optim.decoupled_lr or config.optim.lr)
    if start <= peak:
        return None
    return UserError(f"schedule.warmup_init_lr: {start:g} is more than the peak {peak:g}", expected="at most the peak")


@rule("schedule.warmup_init_lr", "schedule.warmup_steps")
def warmup_has_steps(config: Config, world: int | None) -> UserError | None:
    """Where there is no warm-up, the learning rate that it starts from would be ignored."""
    if not config.schedule.warmup_init_lr or config.schedule.warmup_steps:
        return None
    return UserError(
        "schedule.warmup_init_lr: there is no warm-up", mend="set schedule.warmup_steps, or remove warmup_init_lr"
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


@rule("optim.decoupled_min_lr", "optim.decoupled_lr")
def decoupled_minimum_has_a_peak(config: Config, world: int | None) -> UserError | None:
    """Without a decoupled learning rate, its minimum would be ignored."""
    optim = config.optim
    if optim.decoupled_min_lr is None:
        return None
    return needs("optim.decoupled_min_lr", {"optim.decoupled_lr": optim.decoupled_lr is not None})


@rule("optim.decoupled_lr", "optim.decoupled_min_lr", "schedule.min_lr")
def decoupled_lr_decays(config: Config, world: int | None) -> UserError | None:
    """The decoupled learning rate decays like the other; with a minimum above its peak it would grow."""
    peak, lowest = config.optim.decoupled_lr, config.optim.decoupled_min_lr
    name = "decoupled_min_lr"
    if lowest is None:
        name, lowest = "schedule.min_lr", getattr(config.schedule, "min_lr", 0.0)
    if peak is None or lowest <= peak:
        return None
    what = f"optim.decoupled_lr: {peak:g} is less than {name}={lowest:g}"
    return UserError(what, mend="set optim.decoupled_min_lr to at most optim.decoupled_lr")


@rule("optim.weight_decay_incr_style", "optim.start_weight_decay", "optim.end_weight_decay")
def weight_decay_ramp_is_whole(config: Config, world: int | None) -> UserError | None:
    """A ramp of the weight decay needs a shape and an end that differs; either alone would be ignored."""
    optim = config.optim
    ends = [optim.start_weight_decay, optim.end_weight_decay]
    if (optim.weight_decay_incr_style == "constant") == (ends == [None, None]):
        return None
    if optim.weight_decay_incr_style == "constant":
        what = "optim.weight_decay_incr_style: constant goes with neither start_weight_decay nor end_weight_decay"
        return UserError(what, mend="set it to linear or cosine, or give optim.weight_decay alone")
    what = f"optim.weight_decay_incr_style: {optim.weight_decay_incr_style} needs a start or an end"
    return UserError(what, mend="set optim.start_weight_decay or optim.end_weight_decay")


@rule("optim.start_weight_decay", "optim.end_weight_decay", "optim.weight_decay")
def weight_decay_grows(config: Config, world: int | None) -> UserError | None:
    """megatron-core's ramp of the weight decay rises only."""
    optim = config.optim
    start, end = optim.start_weight_decay, optim.end_weight_decay
    first = optim.weight_decay if start is None else start
    last = optim.weight_decay if end is None else end
    if first <= last:
        return None
    what = f"optim.start_weight_decay: the weight decay falls from {first:g} to {last:g}"
    return UserError(what, mend="set optim.end_weight_decay to at least the start")


@rule("optim.apply_wd_to_qk_layernorm", "model.qk_layernorm")
def decayed_qk_norm_exists(config: Config, world: int | None) -> UserError | None:
    """A model without norms of queries and keys has none to decay."""
    if not config.optim.apply_wd_to_qk_layernorm:
        return None
    return needs("optim.apply_wd_to_qk_layernorm: true", {"model.qk_layernorm: true": config.model.qk_layernorm})


@rule("optim.use_distributed_optimizer", "optim.optimizer")
def distributed_optimizer_is_adam(config: Config, world: int | None) -> UserError | None:
    """megatron-core's distributed optimizer keeps Adam's states only; Muon needs whole matrices, which it cuts."""
    if not config.optim.use_distributed_optimizer:
        return None
    return needs("optim.use_distributed_optimizer: true", {"optim.optimizer: adam": config.optim.optimizer == "adam"})


@rule("optim.optimizer", "precision.dtype")
def muon_has_no_loss_scale(config: Config, world: int | None) -> UserError | None:
    """megatron-core's Muon knows no loss scale, and fp16 cannot do without."""
    if config.optim.optimizer != "muon" or config.precision.dtype != "fp16":
        return None
    return UserError("optim.optimizer: muon does not train in fp16", mend="set precision.dtype: bf16, or use adam")


@rule("optim.use_precision_aware_optimizer", "optim.use_distributed_optimizer", "optim.optimizer")
def precision_aware_optimizer_is_sharded_adam(config: Config, world: int | None) -> UserError | None:
    """Only Transformer Engine's Adam keeps its states in other formats, inside the distributed optimizer."""
    optim = config.optim
    if not optim.use_precision_aware_optimizer:
        return None
    wanted = {
        "optim.optimizer: adam": optim.optimizer == "adam",
        "optim.use_distributed_optimizer: true": optim.use_distributed_optimizer,
    }
    return needs("optim.use_precision_aware_optimizer: true", wanted)


@rule("optim.use_precision_aware_optimizer", *(f"optim.{name}" for name in _STATE_FORMATS))
def state_formats_need_their_optimizer(config: Config, world: int | None) -> UserError | None:
    """The other optimizers keep all their states in fp32."""
    formats = {name: getattr(config.optim, name) for name in _STATE_FORMATS}
    others = [name for name, dtype in formats.items() if dtype != "fp32"]
    if not others or config.optim.use_precision_aware_optimizer:
        return None
    what = f"optim.{others[0]}: {formats[others[0]]} needs optim.use_precision_aware_optimizer: true"
    return UserError(what, mend="set that, or leave the states in fp32")


@rule("optim.main_grads_dtype", "precision.dtype")
def reduced_gradients_fit_the_weights(config: Config, world: int | None) -> UserError | None:
    """Gradients are reduced in fp32 or in the weights' own format; there is no third."""
    dtype, weights = config.optim.main_grads_dtype, config.precision.dtype
    if dtype in ("fp32", weights):
        return None
    what = f"optim.main_grads_dtype: {dtype} needs precision.dtype: {dtype}, found {weights}"
    return UserError(what, mend="set optim.main_grads_dtype: fp32")


@rule("optim.optimizer_cpu_offload", "optim.optimizer", "optim.use_distributed_optimizer")
def offloaded_optimizer_is_sharded_adam(config: Config, world: int | None) -> UserError | None:
    """megatron-core restores offloaded states from a checkpoint in the distributed optimizer alone."""
    optim = config.optim
    if not optim.optimizer_cpu_offload:
        return None
    wanted = {
        "optim.optimizer: adam": optim.optimizer == "adam",
        "optim.use_distributed_optimizer: true": optim.use_distributed_optimizer,
    }
    return needs("optim.optimizer_cpu_offload: true", wanted)


@rule("optim.optimizer_offload_fraction", "optim.optimizer_cpu_offload")
def offloaded_share_is_offloaded(config: Config, world: int | None) -> UserError | None:
    """Without offloading, the share that is offloaded would be ignored."""
    if config.optim.optimizer_offload_fraction == 1.0:
        return None
    given = {"optim.optimizer_cpu_offload: true": config.optim.optimizer_cpu_offload}
    return needs("optim.optimizer_offload_fraction", given)


@rule("ddp.overlap_param_gather", "ddp.overlap_grad_reduce", "optim.use_distributed_optimizer")
def param_gather_has_shards(config: Config, world: int | None) -> UserError | None:
    """Only the distributed optimizer has parameters to gather, and it gathers them through the gradients' buckets."""
    if not config.ddp.overlap_param_gather:
        return None
    wanted = {
        "optim.use_distributed_optimizer: true": config.optim.use_distributed_optimizer,
        "ddp.overlap_grad_reduce: true": config.ddp.overlap_grad_reduce,
    }
    return needs("ddp.overlap_param_gather: true", wanted)


@rule("ddp.use_megatron_fsdp", "optim.use_distributed_optimizer")
def fsdp_shards_the_optimizer(config: Config, world: int | None) -> UserError | None:
    """Megatron-FSDP shards weights and gradients beside the optimizer's states, never without them."""
    if not config.ddp.use_megatron_fsdp:
        return None
    given = {"optim.use_distributed_optimizer: true": config.optim.use_distributed_optimizer}
    return needs("ddp.use_megatron_fsdp: true", given)


@rule("ddp.use_megatron_fsdp", "parallel.pipeline")
def fsdp_has_one_stage(config: Config, world: int | None) -> UserError | None:
    """Megatron-FSDP's mesh of ranks is data x expert x tensor; it has no place for pipeline stages."""
    if not config.ddp.use_megatron_fsdp:
        return None
    return needs("ddp.use_megatron_fsdp: true", {"parallel.pipeline: 1": config.parallel.pipeline == 1})


@rule("ddp.use_megatron_fsdp", "precision.dtype")
def fsdp_has_no_loss_scale(config: Config, world: int | None) -> UserError | None:
    """A rank that holds no row of a parameter has no gradient of it, which the loss scale's check reads even so."""
    if not config.ddp.use_megatron_fsdp or config.precision.dtype != "fp16":
        return None
    return needs("ddp.use_megatron_fsdp: true", {"precision.dtype: bf16": False})


@rule(
    "ddp.use_megatron_fsdp",
    "parallel.tensor",
    "parallel.pipeline",
    "parallel.expert",
    "parallel.expert_tensor",
    "model.num_moe_experts",
)
def fsdp_has_replicas(config: Config, world: int | None) -> UserError | None:
    """Where one rank holds all of a weight, Megatron-FSDP adds each micro-batch's gradient to a sum that has it already
    (seen: grad norm 37.6 instead of 4.1)."""
    parallel = config.parallel
    copy = parallel.tensor * parallel.pipeline
    if config.model.num_moe_experts is not None:
        copy = max(copy, config.expert_replica_size)
    if world is None or not config.ddp.use_megatron_fsdp or world >= 2 * copy:
        return None
    what = f"ddp.use_megatron_fsdp: {world} ranks hold one copy of the model, of {copy}"
    return UserError(what, expected=f"{2 * copy} ranks or more", mend="or take ddp.use_megatron_fsdp out")


@rule("ddp.data_parallel_sharding_strategy", "ddp.use_megatron_fsdp")
def sharding_strategy_is_fsdps(config: Config, world: int | None) -> UserError | None:
    """The distributed optimizer shards one thing only, so a strategy would be ignored."""
    strategy = config.ddp.data_parallel_sharding_strategy
    if strategy == Ddp().data_parallel_sharding_strategy:
        return None
    given = {"ddp.use_megatron_fsdp: true": config.ddp.use_megatron_fsdp}
    return needs(f"ddp.data_parallel_sharding_strategy: {strategy}", given)


@rule("optim.base_vocab_size", "optim.freeze_body_steps")
def base_vocabulary_is_asked_for(config: Config, world: int | None) -> UserError | None:
    """Where nothing is frozen, the first new id would be ignored."""
    if config.optim.base_vocab_size is None:
        return None
    return needs("optim.base_vocab_size", {"optim.freeze_body_steps": config.optim.freeze_body_steps > 0})


@rule("optim.base_vocab_size", "model.vocab_size")
def base_vocabulary_leaves_new_rows(config: Config, world: int | None) -> UserError | None:
    """With no id above it there is no row to train."""
    base, size = config.optim.base_vocab_size, config.model.vocab_size
    if base is None or size is None or base < size:
        return None
    return UserError(f"optim.base_vocab_size: {base} of model.vocab_size={size}", expected="less than the vocabulary")


@rule("optim.freeze_body_steps", *_RUN_LENGTH)
def body_thaws_in_the_run(config: Config, world: int | None) -> UserError | None:
    """More frozen steps than steps are a mistake in one of the two."""
    frozen = config.optim.freeze_body_steps
    if one_run_length.check(config, world) or frozen <= config.total_steps:
        return None
    what = f"optim.freeze_body_steps: {frozen} in a run of {config.total_steps} steps"
    return UserError(what, expected=f"at most {config.total_steps}")


@rule(
    "optim.freeze_body_steps",
    "optim.optimizer",
    "optim.optimizer_cpu_offload",
    "ddp.use_megatron_fsdp",
    "model.moe_router_enable_expert_bias",
)
def frozen_gradients_are_whole(config: Config, world: int | None) -> UserError | None:
    """A body is held still by gradients of zero in DDP's buffers. Megatron-FSDP has rows of them, an offloaded
    optimizer copies of its own, Muon normalises what is zero, and a router's expert bias moves without a gradient."""
    optim = config.optim
    if not optim.freeze_body_steps:
        return None
    wanted = {
        "optim.optimizer: adam or sgd": optim.optimizer != "muon",
        "optim.optimizer_cpu_offload: false": not optim.optimizer_cpu_offload,
        "ddp.use_megatron_fsdp: false": not config.ddp.use_megatron_fsdp,
        "model.moe_router_enable_expert_bias: false": not config.model.moe_router_enable_expert_bias,
    }
    return needs("optim.freeze_body_steps", wanted)


RULES = (
    min_lr_is_below_lr,
    warmup_rises,
    warmup_has_steps,
    warmup_ends_in_the_run,
    decay_follows_warmup,
    decoupled_minimum_has_a_peak,
    decoupled_lr_decays,
    weight_decay_ramp_is_whole,
    weight_decay_grows,
    decayed_qk_norm_exists,
    distributed_optimizer_is_adam,
    muon_has_no_loss_scale,
    precision_aware_optimizer_is_sharded_adam,
    state_formats_need_their_optimizer,
    reduced_gradients_fit_the_weights,
    offloaded_optimizer_is_sharded_adam,
    offloaded_share_is_offloaded,
    param_gather_has_shards,
    fsdp_shards_the_optimizer,
    fsdp_has_one_stage,
    fsdp_has_no_loss_scale,
    fsdp_has_replicas,
    sharding_strategy_is_fsdps,
    base_vocabulary_is_asked_for,
    base_vocabulary_leaves_new_rows,
    body_thaws_in_the_run,
    frozen_gradients_are_whole,
)
