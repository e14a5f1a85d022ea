"""Configs that break the rules of number formats and kernels, and legal ones beside them."""

from __future__ import annotations

BF16 = "precision.dtype=bf16"
FP8 = (BF16, "precision.fp8=hybrid")
MXFP8 = (*FP8, "precision.fp8_recipe=mxfp8")
GATHERED = ("precision.fp8_param_gather=true", "optim.use_distributed_optimizer=true")
OVERLAPPED = ("ddp.overlap_grad_reduce=true", "ddp.overlap_param_gather=true")
BF16_ENDS = (*FP8, "precision.fp8_recipe=tensorwise", "precision.first_last_layers_bf16=true")
LATENT = ("model.family=gpt", "model.multi_latent_attention=true")

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    ("loss_scale_is_fp16s", ("precision.loss_scale=128.0",), None, "loss_scale needs precision.dtype: fp16"),
    ("loss_scale_is_fp16s", (BF16, "precision.hysteresis=3"), None, "hysteresis needs precision.dtype: fp16"),
    (
        "loss_scale_is_fixed_or_dynamic",
        ("precision.dtype=fp16", "precision.loss_scale=128.0", "precision.loss_scale_window=10"),
        None,
        "loss_scale_window: belongs to the dynamic loss scale, and loss_scale is fixed",
    ),
    (
        "loss_scale_starts_above_its_minimum",
        ("precision.dtype=fp16", "precision.initial_loss_scale=4.0", "precision.min_loss_scale=8.0"),
        None,
        "8 is more than initial_loss_scale=4",
    ),
    ("fp8_needs_bf16", ("precision.fp8=hybrid",), None, "needs precision.dtype: bf16, found fp32"),
    ("fp4_needs_bf16", ("precision.fp4=e2m1",), None, "needs precision.dtype: bf16, found fp32"),
    ("fp8_or_fp4", (*FP8, "precision.fp4=e2m1"), None, "precision.fp4: excludes precision.fp8"),
    (
        "fp8_matrices_are_aligned",
        (*FP8, "model.ffn_hidden_size=200"),
        None,
        "ffn_hidden_size / tensor = 200; expected multiples of 16",
    ),
    (
        "fp8_matrices_are_aligned",
        (*MXFP8, "model.num_query_groups=1", "model.kv_channels=16"),
        None,
        "num_query_groups x kv_channels / tensor = 16; expected multiples of 32",
    ),
    (
        "fp8_matrices_are_aligned",
        (BF16, "precision.fp4=e2m1", "model.num_moe_experts=4", "model.moe_ffn_hidden_size=40"),
        None,
        "precision.fp4: moe_ffn_hidden_size / expert_tensor = 40; expected multiples of 16",
    ),
    (
        "fp8_tokens_are_aligned",
        (*FP8, "model.seq_length=10"),
        None,
        "a micro-batch has 20 tokens a rank; expected a multiple of 8; "
        "make train.micro_batch_size x model.seq_length 16 or 24",
    ),
    (
        "fp8_tokens_are_aligned",
        (*MXFP8, "parallel.tensor=4", "parallel.sequence=true", "model.seq_length=32"),
        None,
        "a micro-batch has 16 tokens a rank; expected a multiple of 32",
    ),
    (
        "fp8_history_is_delayed",
        (*MXFP8, "precision.fp8_amax_history_len=16"),
        None,
        "precision.fp8_amax_history_len needs precision.fp8_recipe: delayed",
    ),
    ("fp8_history_is_delayed", ("precision.fp8_margin=1",), None, "precision.fp8_margin needs precision.fp8"),
    (
        "fp8_weights_are_sharded",
        ("precision.fp8_param_gather=true",),
        None,
        "fp8_param_gather: true needs precision.fp8 and optim.use_distributed_optimizer: true",
    ),
    (
        "mxfp8_weights_are_gathered_at_once",
        (*MXFP8, *GATHERED, *OVERLAPPED),
        None,
        "fp8_recipe: mxfp8 does not go with ddp.overlap_param_gather; set ddp.overlap_param_gather: false",
    ),
    (
        "bf16_layers_are_not_delayed",
        (*FP8, "precision.first_last_layers_bf16=true"),
        None,
        "does not go with fp8_recipe: delayed; use precision.fp8_recipe: tensorwise",
    ),
    (
        "bf16_layers_are_not_delayed",
        ("precision.first_last_layers_bf16=true",),
        None,
        "first_last_layers_bf16: true needs precision.fp8 or fp4",
    ),
    (
        "bf16_layers_fit_a_stage",
        (*BF16_ENDS, "precision.num_layers_at_end_in_bf16=3", "parallel.pipeline=2"),
        None,
        "num_layers_at_end_in_bf16: 3 layers, a stage has 2; expected at most 2",
    ),
    (
        "delayed_scales_are_not_recomputed",
        (*FP8, "model.recompute_granularity=selective", "model.recompute_modules=[layernorm]"),
        None,
        "layernorm cannot be computed again with fp8_recipe: delayed",
    ),
    (
        "z_loss_has_its_cross_entropy",
        ("kernels.cross_entropy_loss_fusion=true", "train.z_loss_coeff=1e-4"),
        None,
        "does not go with train.z_loss_coeff; take kernels.cross_entropy_loss_fusion out",
    ),
    (
        "deterministic_kernels_only",
        ("run.deterministic=true", "kernels.cross_entropy_loss_fusion=true"),
        None,
        "kernels.cross_entropy_loss_fusion would not give the same bits twice",
    ),
    (
        "fused_activation_exists",
        ("model.family=gpt", "model.activation=squared_relu", "kernels.bias_activation_fusion=true"),
        None,
        "there is no such function for this model's squared_relu",
    ),
    (
        "fused_activation_exists",
        ("model.family=gpt", "model.activation=gelu", "kernels.bias_activation_fusion=true"),
        None,
        "there is no such function for this model's gelu",
    ),
    (
        "fused_activation_exists",
        (
            "model.family=gpt",
            "model.activation=geglu",
            "model.num_moe_experts=4",
            "kernels.bias_activation_fusion=true",
        ),
        None,
        "there is no such function for this model's geglu",
    ),
    (
        "fused_rotation_exists",
        ("model.family=gpt", "model.position_embedding_type=none", "kernels.apply_rope_fusion=true"),
        None,
        "position_embedding_type: none rotates nothing",
    ),
    (
        "fused_rotation_exists",
        (
            "model.family=gpt",
            "model.rope_scaling={kind: yarn, factor: 4.0, original_max_position_embeddings: 8}",
            "kernels.apply_rope_fusion=true",
        ),
        None,
        "megatron-core scales the channels of rope_scaling: {kind: yarn} unfused",
    ),
    (
        "fused_rotation_exists",
        (*LATENT, "kernels.apply_rope_fusion=true"),
        None,
        "latent attention has a fused rotation with rope_scaling: {kind: yarn} alone",
    ),
    (
        "spread_experts_have_a_fixed_loss_scale",
        ("precision.dtype=fp16", "model.family=gpt", "model.num_moe_experts=8", "parallel.expert=2"),
        None,
        "dynamic, with experts spread over parallel.expert=2 ranks; set precision.dtype: bf16",
    ),
]

LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    (("precision.dtype=fp16", "precision.loss_scale=128.0"), None),
    (("precision.dtype=fp16", "precision.initial_loss_scale=1024.0", "precision.hysteresis=1"), None),
    ((*FP8, "precision.fp8_margin=1", *GATHERED, *OVERLAPPED), 2),
    ((*MXFP8, *GATHERED, "model.kv_channels=32"), 2),
    ((*BF16_ENDS, "parallel.pipeline=2"), 2),
    ((BF16, "precision.fp4=e2m1"), None),
    (("model.family=gpt", "model.activation=gelu", "model.add_bias_linear=true"), None),
    (("kernels.bias_activation_fusion=true", "kernels.apply_rope_fusion=true", "train.z_loss_coeff=1e-4"), None),
    (
        (
            *FP8,
            "precision.fp8_recipe=tensorwise",
            "model.recompute_granularity=selective",
            "model.recompute_modules=[layernorm]",
        ),
        None,
    ),
]
