"""Configs that break the rules of the optimizer, and legal ones beside them."""

from __future__ import annotations

SEVEN_STEPS = ("train.steps=null", "train.tokens=3500", "schedule.warmup_steps=7")

FSDP = ("ddp.use_megatron_fsdp=true", "optim.use_distributed_optimizer=true")

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    ("min_lr_is_below_lr", ("schedule.min_lr=1e-3",), None, "0.001 is more than optim.lr=0.0003"),
    ("warmup_rises", ("schedule.warmup_init_lr=1e-3",), None, "0.001 is more than the peak 0.0003"),
    (
        "warmup_rises",
        ("schedule.warmup_init_lr=1e-4", "optim.decoupled_lr=1e-5"),
        None,
        "0.0001 is more than the peak 1e-05",
    ),
    (
        "warmup_has_steps",
        ("schedule.warmup_init_lr=1e-4", "schedule.warmup_steps=0"),
        None,
        "there is no warm-up; set schedule.warmup_steps",
    ),
    (
        "warmup_ends_in_the_run",
        ("schedule.warmup_steps=100",),
        None,
        "100 fills the run of 100 steps; expected at most 99",
    ),
    ("warmup_ends_in_the_run", SEVEN_STEPS, None, "7 fills the run of 7 steps"),
    (
        "decay_follows_warmup",
        ("schedule={kind: wsd, warmup_steps: 10, decay_steps: 91}",),
        None,
        "warmup_steps=10 + decay_steps=91 is more than the run's 100 steps; expected at most 90",
    ),
    ("decoupled_minimum_has_a_peak", ("optim.decoupled_min_lr=1e-5",), None, "needs optim.decoupled_lr"),
    (
        "decoupled_lr_decays",
        ("optim.decoupled_lr=1e-5", "schedule.min_lr=1e-4"),
        None,
        "1e-05 is less than schedule.min_lr=0.0001; set optim.decoupled_min_lr",
    ),
    (
        "decoupled_lr_decays",
        ("optim.decoupled_lr=1e-5", "optim.decoupled_min_lr=2e-5"),
        None,
        "1e-05 is less than decoupled_min_lr=2e-05",
    ),
    (
        "weight_decay_ramp_is_whole",
        ("optim.end_weight_decay=0.2",),
        None,
        "constant goes with neither start_weight_decay nor end_weight_decay; set it to linear or cosine",
    ),
    (
        "weight_decay_ramp_is_whole",
        ("optim.weight_decay_incr_style=linear",),
        None,
        "linear needs a start or an end; set optim.start_weight_decay or optim.end_weight_decay",
    ),
    (
        "weight_decay_grows",
        ("optim.weight_decay_incr_style=cosine", "optim.end_weight_decay=0.05"),
        None,
        "the weight decay falls from 0.1 to 0.05",
    ),
    ("decayed_qk_norm_exists", ("optim.apply_wd_to_qk_layernorm=true",), None, "needs model.qk_layernorm: true"),
    (
        "distributed_optimizer_is_adam",
        ("optim.optimizer=sgd", "optim.use_distributed_optimizer=true"),
        None,
        "optim.use_distributed_optimizer: true needs optim.optimizer: adam",
    ),
    (
        "muon_has_no_loss_scale",
        ("optim.optimizer=muon", "precision.dtype=fp16"),
        None,
        "muon does not train in fp16; set precision.dtype: bf16",
    ),
    (
        "precision_aware_optimizer_is_sharded_adam",
        ("optim.use_precision_aware_optimizer=true", "optim.optimizer=sgd"),
        None,
        "needs optim.optimizer: adam and optim.use_distributed_optimizer: true",
    ),
    (
        "state_formats_need_their_optimizer",
        ("optim.exp_avg_dtype=bf16",),
        None,
        "optim.exp_avg_dtype: bf16 needs optim.use_precision_aware_optimizer: true",
    ),
    (
        "reduced_gradients_fit_the_weights",
        ("optim.main_grads_dtype=bf16",),
        None,
        "bf16 needs precision.dtype: bf16, found fp32",
    ),
    (
        "offloaded_optimizer_is_sharded_adam",
        ("optim.optimizer_cpu_offload=true",),
        None,
        "optim.optimizer_cpu_offload: true needs optim.use_distributed_optimizer: true",
    ),
    (
        "offloaded_share_is_offloaded",
        ("optim.optimizer_offload_fraction=0.5",),
        None,
        "needs optim.optimizer_cpu_offload: true",
    ),
    (
        "param_gather_has_shards",
        ("ddp.overlap_param_gather=true",),
        None,
        "needs optim.use_distributed_optimizer: true and ddp.overlap_grad_reduce: true",
    ),
    (
        "fsdp_shards_the_optimizer",
        ("ddp.use_megatron_fsdp=true",),
        None,
        "ddp.use_megatron_fsdp: true needs optim.use_distributed_optimizer: true",
    ),
    ("fsdp_has_one_stage", (*FSDP, "parallel.pipeline=2"), None, "needs parallel.pipeline: 1"),
    ("fsdp_has_no_loss_scale", (*FSDP, "precision.dtype=fp16"), None, "needs precision.dtype: bf16"),
    ("fsdp_has_replicas", FSDP, 1, "1 ranks hold one copy of the model, of 1; expected 2 ranks or more"),
    (
        "fsdp_has_replicas",
        (*FSDP, "model.family=gpt", "model.num_moe_experts=8", "parallel.expert=2"),
        2,
        "2 ranks hold one copy of the model, of 2; expected 4 ranks or more",
    ),
    (
        "sharding_strategy_is_fsdps",
        ("ddp.data_parallel_sharding_strategy=optim_grads",),
        None,
        "ddp.data_parallel_sharding_strategy: optim_grads needs ddp.use_megatron_fsdp: true",
    ),
    ("base_vocabulary_is_asked_for", ("optim.base_vocab_size=100",), None, "needs optim.freeze_body_steps"),
    (
        "base_vocabulary_leaves_new_rows",
        ("optim.freeze_body_steps=5", "optim.base_vocab_size=1000", "model.vocab_size=1000"),
        None,
        "optim.base_vocab_size: 1000 of model.vocab_size=1000",
    ),
    ("body_thaws_in_the_run", ("optim.freeze_body_steps=101",), None, "101 in a run of 100 steps"),
    (
        "frozen_gradients_are_whole",
        ("optim.freeze_body_steps=5", *FSDP),
        2,
        "optim.freeze_body_steps needs ddp.use_megatron_fsdp: false",
    ),
]

LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    (FSDP, 2),
    (("schedule={kind: wsd, warmup_steps: 10, decay_steps: 90}",), None),
    (("schedule={kind: inverse_square_root, warmup_steps: 10, warmup_init_lr: 1e-5, min_lr: 1e-5}",), None),
    (("train.steps=1", "schedule.warmup_steps=0"), None),
    (("optim.decoupled_lr=3e-3", "optim.decoupled_min_lr=1e-5"), None),
    (
        (
            "optim.weight_decay_incr_style=linear",
            "optim.start_weight_decay=0.01",
            "optim.no_weight_decay=['*linear_proj*']",
        ),
        None,
    ),
    (("optim.optimizer=sgd", "optim.sgd_momentum=0.0"), None),
    (("optim.freeze_body_steps=5", "optim.base_vocab_size=100", "optim.decoupled_lr=3e-3"), None),
    (("optim.optimizer=muon", "precision.dtype=bf16"), None),
    (
        (
            "precision.dtype=bf16",
            "optim.use_distributed_optimizer=true",
            "optim.use_precision_aware_optimizer=true",
            "optim.main_grads_dtype=bf16",
            "optim.exp_avg_dtype=fp8",
            "optim.optimizer_cpu_offload=true",
            "optim.optimizer_offload_fraction=0.5",
        ),
        2,
    ),
    (("ddp.overlap_param_gather=true", "ddp.overlap_grad_reduce=true", "optim.use_distributed_optimizer=true"), 2),
]
