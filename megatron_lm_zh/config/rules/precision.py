"""Rules of number formats and fused kernels."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import multiples_around, needs, rule
from megatron_lm_zh.config.schema import Config, Precision
from megatron_lm_zh.config.sections.rope_scaling import YarnScaling
from megatron_lm_zh.errors import UserError

_DYNAMIC_SCALE = ("initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis")
_HISTORY = ("fp8_margin", "fp8_amax_history_len", "fp8_amax_compute_algo")
_BF16_LAYERS = ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")


def _keys(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"precision.{name}" for name in names)


def _changed(config: Config, names: tuple[str, ...]) -> list[str]:
    """Which of some precision settings are not their defaults."""
    default = Precision()
    return [name for name in names if getattr(config.precision, name) != getattr(default, name)]


def _is_quantised(config: Config) -> bool:
    return config.precision.fp8 is not None or config.precision.fp4 is not None


@rule("precision.dtype", "precision.loss_scale", *_keys(_DYNAMIC_SCALE))
def loss_scale_is_fp16s(config: Config, world: int | None) -> UserError | None:
    """bf16 and fp32 have the exponents that fp16 lacks, so their gradients need no scale."""
    scaled = _changed(config, ("loss_scale", *_DYNAMIC_SCALE))
    if config.precision.dtype == "fp16" or not scaled:
        return None
    return needs(f"precision.{scaled[0]}", {"precision.dtype: fp16": False})


@rule("precision.loss_scale", *_keys(_DYNAMIC_SCALE))
def loss_scale_is_fixed_or_dynamic(config: Config, world: int | None) -> UserError | None:
    """A fixed loss scale does not move, so what moves a dynamic one would be ignored."""
    dynamic = _changed(config, _DYNAMIC_SCALE)
    if config.precision.loss_scale is None or not dynamic:
        return None
    what = f"precision.{dynamic[0]}: belongs to the dynamic loss scale, and loss_scale is fixed"
    return UserError(what, mend=f"remove precision.loss_scale, or precision.{dynamic[0]}")


@rule("precision.min_loss_scale", "precision.initial_loss_scale")
def loss_scale_starts_above_its_minimum(config: Config, world: int | None) -> UserError | None:
    """The dynamic loss scale falls from its first value to no less than its minimum."""
    lowest, first = config.precision.min_loss_scale, config.precision.initial_loss_scale
    if lowest <= first:
        return None
    return UserError(
        f"precision.min_loss_scale: {lowest:g} is more than initial_loss_scale={first:g}",
        expected="at most initial_loss_scale",
    )


@rule("precision.dtype", "precision.loss_scale", "parallel.expert", "model.num_moe_experts")
def spread_experts_have_a_fixed_loss_scale(config: Config, world: int | None) -> UserError | None:
    """Experts spread over ranks have an optimizer and a dynamic loss scale of their own; after an overflow in one of
    the two their scales differ, but the loss is multiplied with one."""
    precision, ranks = config.precision, config.parallel.expert
    spread = config.model.num_moe_experts is not None and ranks > 1
    if precision.dtype != "fp16" or precision.loss_scale is not None or not spread:
        return None
    what = f"precision.loss_scale: dynamic, with experts spread over parallel.expert={ranks} ranks"
    return UserError(what, mend="set precision.dtype: bf16, or precision.loss_scale: 1024")


@rule("precision.fp8", "precision.dtype")
def fp8_needs_bf16(config: Config, world: int | None) -> UserError | None:
    """FP8 matrix multiplications take their inputs from bf16 activations."""
    if config.precision.fp8 is None or config.precision.dtype == "bf16":
        return None
    what = f"precision.fp8: needs precision.dtype: bf16, found {config.precision.dtype}"
    return UserError(what, mend="set precision.dtype: bf16, or remove precision.fp8")


@rule("precision.fp4", "precision.dtype")
def fp4_needs_bf16(config: Config, world: int | None) -> UserError | None:
    """NVFP4 matrix multiplications take their inputs from bf16 activations."""
    if config.precision.fp4 is None or config.precision.dtype == "bf16":
        return None
    what = f"precision.fp4: needs precision.dtype: bf16, found {config.precision.dtype}"
    return UserError(what, mend="set precision.dtype: bf16, or remove precision.fp4")


@rule("precision.fp4", "precision.fp8")
def fp8_or_fp4(config: Config, world: int | None) -> UserError | None:
    """A matrix multiplication has one format."""
    if config.precision.fp4 is None or config.precision.fp8 is None:
        return None
    return UserError("precision.fp4: excludes precision.fp8", mend="remove one of them")


@rule(
    "precision.fp8",
    "precision.fp8_recipe",
    "precision.fp4",
    "model.hidden_size",
    "model.ffn_hidden_size",
    "model.num_attention_heads",
    "model.num_query_groups",
    "model.kv_channels",
    "model.multi_latent_attention",
    "model.num_moe_experts",
    "model.moe_ffn_hidden_size",
    "parallel.tensor",
    "parallel.expert_tensor",
)
def fp8_matrices_are_aligned(config: Config, world: int | None) -> UserError | None:
    """Quantised matrices are multiplied in blocks: every rank's part of every weight must be whole blocks wide."""
    if not _is_quantised(config):
        return None
    model, tensor = config.model, config.parallel.tensor
    widths = {"hidden_size": model.hidden_size, "ffn_hidden_size / tensor": model.ffn_hidden_size / tensor}
    if not model.multi_latent_attention:
        channels = model.kv_channels / tensor
        widths["num_attention_heads x kv_channels / tensor"] = model.num_attention_heads * channels
        widths["num_query_groups x kv_channels / tensor"] = model.num_query_groups * channels
    if model.num_moe_experts is not None:
        expert = model.moe_ffn_hidden_size or model.ffn_hidden_size
        widths["moe_ffn_hidden_size / expert_tensor"] = expert / config.parallel.expert_tensor
    block = _block(config)
    wrong = [f"{name} = {width:g}" for name, width in widths.items() if width % block]
    if not wrong:
        return None
    name = "fp8" if config.precision.fp8 else "fp4"
    return UserError(f"precision.{name}: {', '.join(wrong)}", expected=f"multiples of {block}")


@rule(
    "precision.fp8",
    "precision.fp8_recipe",
    "precision.fp4",
    "train.micro_batch_size",
    "model.seq_length",
    "parallel.context",
    "parallel.sequence",
    "parallel.tensor",
)
def fp8_tokens_are_aligned(config: Config, world: int | None) -> UserError | None:
    """Weight gradients are sums over tokens, so a rank's tokens must be whole blocks, too (Transformer Engine)."""
    if not _is_quantised(config):
        return None
    parallel = config.parallel
    ranks = parallel.context * (parallel.tensor if parallel.sequence else 1)
    tokens = config.train.micro_batch_size * config.model.seq_length
    block = _token_block(config)
    if tokens % (ranks * block) == 0:
        return None
    what = f"precision.{'fp8' if config.precision.fp8 else 'fp4'}: a micro-batch has {tokens / ranks:g} tokens a rank"
    mend = f"make train.micro_batch_size x model.seq_length {multiples_around(tokens, ranks * block)}"
    return UserError(what, expected=f"a multiple of {block}", mend=mend)


@rule("precision.fp8_recipe", "precision.fp8", *_keys(_HISTORY))
def fp8_history_is_delayed(config: Config, world: int | None) -> UserError | None:
    """Only the delayed recipe looks at past maxima."""
    history = _changed(config, _HISTORY)
    if not history or (config.precision.fp8 is not None and config.precision.fp8_recipe == "delayed"):
        return None
    given = {
        "precision.fp8": config.precision.fp8 is not None,
        "precision.fp8_recipe: delayed": config.precision.fp8_recipe == "delayed",
    }
    return needs(f"precision.{history[0]}", given)


@rule(
    "precision.fp8_param_gather",
    "precision.fp8",
    "optim.use_distributed_optimizer",
    "ddp.use_megatron_fsdp",
)
def fp8_weights_are_sharded(config: Config, world: int | None) -> UserError | None:
    """FP8 weights are made from the fp32 shards of the distributed optimizer; no other optimizer keeps them up."""
    if not config.precision.fp8_param_gather:
        return None
    sharded = config.optim.use_distributed_optimizer or config.ddp.use_megatron_fsdp
    given = {"precision.fp8": config.precision.fp8 is not None, "optim.use_distributed_optimizer: true": sharded}
    return needs("precision.fp8_param_gather: true", given)


@rule("precision.fp8_param_gather", "precision.fp8_recipe", "ddp.overlap_param_gather")
def mxfp8_weights_are_gathered_at_once(config: Config, world: int | None) -> UserError | None:
    """MXFP8 weights are gathered through the gradients' buffer, which the overlapped gather would still be using."""
    precision = config.precision
    if not precision.fp8_param_gather or precision.fp8_recipe != "mxfp8" or not config.ddp.overlap_param_gather:
        return None
    what = "precision.fp8_param_gather: with fp8_recipe: mxfp8 does not go with ddp.overlap_param_gather"
    return UserError(what, mend="set ddp.overlap_param_gather: false, or take precision.fp8_param_gather out")


@rule("precision.first_last_layers_bf16", "precision.fp8", "precision.fp4", "precision.fp8_recipe")
def bf16_layers_are_not_delayed(config: Config, world: int | None) -> UserError | None:
    """The delayed recipe reduces the maxima of all layers together, so no layer may be left out."""
    precision = config.precision
    if not precision.first_last_layers_bf16:
        return None
    if precision.fp8 is not None and precision.fp8_recipe == "delayed":
        what = "precision.first_last_layers_bf16: does not go with fp8_recipe: delayed"
        return UserError(what, mend="use precision.fp8_recipe: tensorwise, or set first_last_layers_bf16: false")
    return needs("precision.first_last_layers_bf16: true", {"precision.fp8 or fp4": _is_quantised(config)})


@rule("precision.first_last_layers_bf16", *_keys(_BF16_LAYERS), "model.num_layers", "parallel.pipeline")
def bf16_layers_fit_a_stage(config: Config, world: int | None) -> UserError | None:
    """The layers in bf16 lie in the first and the last pipeline stage."""
    if not config.precision.first_last_layers_bf16:
        return None
    stage = config.model.num_layers // config.parallel.pipeline
    for name in _BF16_LAYERS:
        count = getattr(config.precision, name)
        if count > stage:
            return UserError(f"precision.{name}: {count} layers, a stage has {stage}", expected=f"at most {stage}")
    return None


@rule("precision.fp8", "precision.fp8_recipe", "model.recompute_granularity", "model.recompute_modules")
def delayed_scales_are_not_recomputed(config: Config, world: int | None) -> UserError | None:
    """Computing an FP8 input again under the delayed recipe would count its maximum twice."""
    model, precision = config.model, config.precision
    if precision.fp8 is None or precision.fp8_recipe != "delayed" or model.recompute_granularity != "selective":
        return None
    wrong = [name for name in ("moe_act", "layernorm") if name in model.recompute_modules]
    if not wrong:
        return None
    what = f"model.recompute_modules: {' and '.join(wrong)} cannot be computed again with fp8_recipe: delayed"
    return UserError(what, mend="use precision.fp8_recipe: tensorwise, or leave them out")


@rule("kernels.cross_entropy_loss_fusion", "train.z_loss_coeff")
def z_loss_has_its_cross_entropy(config: Config, world: int | None) -> UserError | None:
    """megatron-core's fused cross entropy has no z-loss; this system's own has."""
    if not config.kernels.cross_entropy_loss_fusion or not config.train.z_loss_coeff:
        return None
    what = "kernels.cross_entropy_loss_fusion: true does not go with train.z_loss_coeff"
    return UserError(what, mend="take kernels.cross_entropy_loss_fusion out")


@rule("run.deterministic", "kernels.cross_entropy_loss_fusion", "parallel.tp_comm_overlap")
def deterministic_kernels_only(config: Config, world: int | None) -> UserError | None:
    """The fused cross entropy and the overlapped tensor-parallel products add in an order that changes."""
    asked = {
        "kernels.cross_entropy_loss_fusion": config.kernels.cross_entropy_loss_fusion,
        "parallel.tp_comm_overlap": config.parallel.tp_comm_overlap,
    }
    wrong = [key for key, given in asked.items() if given]
    if not config.run.deterministic or not wrong:
        return None
    what = f"run.deterministic: {' and '.join(wrong)} would not give the same bits twice"
    return UserError(what, mend=f"take {wrong[0]} out, or set run.deterministic: false")


@rule("kernels.bias_activation_fusion", "model.activation", "model.add_bias_linear", "model.num_moe_experts")
def fused_activation_exists(config: Config, world: int | None) -> UserError | None:
    """megatron-core fuses the bias with SwiGLU, GEGLU and GELU, and weighs an expert's output in SwiGLU alone."""
    model = config.model
    if not config.kernels.bias_activation_fusion or model.activation == "swiglu":
        return None
    has = model.activation == "geglu" or (model.activation == "gelu" and model.add_bias_linear)
    if has and model.num_moe_experts is None:
        return None
    return UserError(
        f"kernels.bias_activation_fusion: there is no such function for this model's {model.activation}",
        mend="take kernels.bias_activation_fusion out",
    )


@rule(
    "kernels.apply_rope_fusion",
    "model.position_embedding_type",
    "model.multi_latent_attention",
    "model.rope_scaling",
)
def fused_rotation_exists(config: Config, world: int | None) -> UserError | None:
    """The fused rotation is of rotary embeddings that are not YaRN's, and with latent attention of YaRN's alone."""
    model = config.model
    yarn = isinstance(model.rope_scaling, YarnScaling)
    if not config.kernels.apply_rope_fusion:
        return None
    if model.position_embedding_type != "rope":
        what = f"kernels.apply_rope_fusion: position_embedding_type: {model.position_embedding_type} rotates nothing"
    elif yarn and not model.multi_latent_attention:
        what = "kernels.apply_rope_fusion: megatron-core scales the channels of rope_scaling: {kind: yarn} unfused"
    elif model.multi_latent_attention and not yarn:
        what = "kernels.apply_rope_fusion: latent attention has a fused rotation with rope_scaling: {kind: yarn} alone"
    else:
        return None
    return UserError(what, mend="take kernels.apply_rope_fusion out")


def _is_mxfp8(config: Config) -> bool:
    return config.precision.fp8 is not None and config.precision.fp8_recipe == "mxfp8"


def _block(config: Config) -> int:
    """Width that what is multiplied must be a multiple of."""
    return 32 if _is_mxfp8(config) else 16


def _token_block(config: Config) -> int:
    """What a rank's number of tokens must be a multiple of."""
    return 32 if _is_mxfp8(config) else 8 if config.precision.fp8 is not None else 16


RULES = (
    loss_scale_is_fp16s,
    loss_scale_is_fixed_or_dynamic,
    loss_scale_starts_above_its_minimum,
    spread_experts_have_a_fixed_loss_scale,
    fp8_needs_bf16,
    fp4_needs_bf16,
    fp8_or_fp4,
    fp8_matrices_are_aligned,
    fp8_tokens_are_aligned,
    fp8_history_is_delayed,
    fp8_weights_are_sharded,
    mxfp8_weights_are_gathered_at_once,
    bf16_layers_are_not_delayed,
    bf16_layers_fit_a_stage,
    delayed_scales_are_not_recomputed,
    z_loss_has_its_cross_entropy,
    deterministic_kernels_only,
    fused_activation_exists,
    fused_rotation_exists,
)
