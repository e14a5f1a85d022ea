"""Rules of fields that have no key here and stand in the `model.megatron` table."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import needs, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

TABLE = "model.megatron"
EXPERT_OVERLAP = "overlap_moe_expert_parallel_comm"


@rule(TABLE, "precision.dtype")
def fp32_residual_is_of_half_precision(config: Config, world: int | None) -> UserError | None:
    """In fp32 the residual stream is fp32 already."""
    if not config.model.megatron.get("fp32_residual_connection") or config.precision.dtype != "fp32":
        return None
    return needs(f"{TABLE}.fp32_residual_connection: true", {"precision.dtype: bf16 or fp16": False})


@rule(TABLE)
def te_cross_entropy_is_not_used(config: Config, world: int | None) -> UserError | None:
    """Megatron-LM refuses Transformer Engine's fused cross entropy: it is unstable."""
    if config.model.megatron.get("cross_entropy_fusion_impl", "native") == "native":
        return None
    return UserError(f"{TABLE}.cross_entropy_fusion_impl: te is unstable", mend="set it to native, or take it out")


@rule(TABLE, "parallel.pipeline", "kernels.gradient_accumulation_fusion")
def deferred_embedding_gradients_have_a_bubble(config: Config, world: int | None) -> UserError | None:
    """The embedding's weight gradients are put off into the pipeline's last bubble, through the fused accumulation."""
    if not config.model.megatron.get("defer_embedding_wgrad_compute"):
        return None
    wanted = {
        "parallel.pipeline above 1": config.parallel.pipeline > 1,
        "kernels.gradient_accumulation_fusion: true": config.kernels.gradient_accumulation_fusion is True,
    }
    return needs(f"{TABLE}.defer_embedding_wgrad_compute: true", wanted)


@rule(TABLE, "parallel.virtual_pipeline", "parallel.overlap_p2p_comm")
def flushed_sends_are_overlapped(config: Config, world: int | None) -> UserError | None:
    """Sends of the warm-up and the flush can overlap where those between them do: in the interleaved schedule."""
    if not config.model.megatron.get("overlap_p2p_comm_warmup_flush"):
        return None
    wanted = {
        "parallel.virtual_pipeline above 1": config.parallel.virtual_pipeline > 1,
        "parallel.overlap_p2p_comm: true": config.parallel.overlap_p2p_comm,
    }
    return needs(f"{TABLE}.overlap_p2p_comm_warmup_flush: true", wanted)


@rule(
    TABLE,
    "parallel.expert",
    "parallel.pipeline",
    "parallel.virtual_pipeline",
    "precision.dtype",
    "model.moe_token_dispatcher_type",
    "model.moe_shared_expert_overlap",
    "model.mtp_num_layers",
    "model.recompute_granularity",
    "model.recompute_modules",
)
def overlapped_expert_traffic_can_be_hidden(config: Config, world: int | None) -> UserError | None:
    """One micro-batch's tokens travel while another is computed: layers are cut into pieces that these settings would
    join again."""
    model, parallel = config.model, config.parallel
    if not model.megatron.get(EXPERT_OVERLAP):
        return None
    selective = model.recompute_granularity == "selective"
    wanted = {
        "parallel.expert above 1": parallel.expert > 1,
        "parallel.virtual_pipeline above 1": parallel.pipeline == 1 or parallel.virtual_pipeline > 1,
        "precision.dtype: bf16 or fp16": config.precision.dtype != "fp32",
        "model.moe_token_dispatcher_type: alltoall or flex": model.moe_token_dispatcher_type != "allgather",
        "model.moe_shared_expert_overlap: false": not model.moe_shared_expert_overlap,
        "model.mtp_num_layers of at most 1": (model.mtp_num_layers or 0) <= 1,
        "model.recompute_granularity other than full": model.recompute_granularity != "full",
        "model.recompute_modules without moe": not (selective and "moe" in model.recompute_modules),
    }
    return needs(f"{TABLE}.{EXPERT_OVERLAP}: true", wanted)


@rule(TABLE)
def delayed_weight_gradients_hide_traffic(config: Config, world: int | None) -> UserError | None:
    """Weight gradients are delayed in order to be computed while tokens travel; nowhere else are they ever computed."""
    table = config.model.megatron
    if not table.get("delay_wgrad_compute"):
        return None
    wanted = {f"{TABLE}.{EXPERT_OVERLAP}: true": bool(table.get(EXPERT_OVERLAP))}
    return needs(f"{TABLE}.delay_wgrad_compute: true", wanted)


@rule(
    TABLE,
    "model.num_layers",
    "model.recompute_granularity",
    "model.cuda_graph_impl",
    "model.fine_grained_activation_offloading",
    "parallel.pipeline",
)
def whole_layers_are_offloaded_alone(config: Config, world: int | None) -> UserError | None:
    """Transformer Engine's offload moves the saved tensors of whole layers, in the order of one plain forward and
    backward pass: no stages, no recompute, no graphs."""
    model = config.model
    count = model.megatron.get("cpu_offloading_num_layers", 0)
    if not model.megatron.get("cpu_offloading"):
        return None
    wanted = {
        f"{TABLE}.cpu_offloading_num_layers from 1 to {model.num_layers - 1}": 0 < count < model.num_layers,
        "parallel.pipeline: 1": config.parallel.pipeline == 1,
        "model.recompute_granularity: null": model.recompute_granularity is None,
        "model.cuda_graph_impl: none": model.cuda_graph_impl == "none",
        "model.fine_grained_activation_offloading: false": not model.fine_grained_activation_offloading,
    }
    return needs(f"{TABLE}.cpu_offloading: true", wanted)


@rule(TABLE)
def clipped_queries_have_a_threshold(config: Config, world: int | None) -> UserError | None:
    """QK-clip shares the shrinking out between queries and keys by alpha, once a logit exceeds the threshold."""
    table = config.model.megatron
    alpha, threshold = table.get("qk_clip_alpha", 0.5), table.get("qk_clip_threshold", 100)
    if not table.get("qk_clip") or (0 < alpha < 1 and threshold > 0):
        return None
    key, value, expected = (
        ("qk_clip_alpha", alpha, "between 0 and 1")
        if not 0 < alpha < 1
        else ("qk_clip_threshold", threshold, "above 0")
    )
    return UserError(f"{TABLE}.{key}: found {value:g}", expected=f"a number {expected}")


@rule(TABLE, "precision.fp8", "precision.fp4", "model.moe_token_dispatcher_type")
def padded_routes_are_quantised(config: Config, world: int | None) -> UserError | None:
    """Routes are padded so that each expert's tokens fill blocks of FP8 or FP4; the gathered dispatcher cannot pad."""
    if not config.model.megatron.get("moe_router_padding_for_quantization"):
        return None
    wanted = {
        "precision.fp8 or precision.fp4": config.precision.fp8 is not None or config.precision.fp4 is not None,
        "model.moe_token_dispatcher_type: alltoall or flex": config.model.moe_token_dispatcher_type != "allgather",
    }
    return needs(f"{TABLE}.moe_router_padding_for_quantization: true", wanted)


@rule(TABLE, "model.moe_router_topk")
def probabilities_weigh_one_input(config: Config, world: int | None) -> UserError | None:
    """An expert is not linear: weighing its input in place of its output is a choice only where there is one expert."""
    topk = config.model.moe_router_topk
    if not config.model.megatron.get("moe_apply_probs_on_input") or topk == 1:
        return None
    return needs(f"{TABLE}.moe_apply_probs_on_input: true", {"model.moe_router_topk: 1": False})


@rule(TABLE, "model.num_moe_experts", "model.moe_shared_expert_overlap")
def latent_experts_exist(config: Config, world: int | None) -> UserError | None:
    """Experts on a latent (LatentMoE) project tokens before they travel, which overlapped shared experts do not see."""
    model = config.model
    if model.megatron.get("moe_latent_size") is None:
        return None
    wanted = {
        "model.num_moe_experts": model.num_moe_experts is not None,
        "model.moe_shared_expert_overlap: false": not model.moe_shared_expert_overlap,
    }
    return needs(f"{TABLE}.moe_latent_size", wanted)


@rule(TABLE, "model.moe_router_group_score", "model.moe_router_num_groups")
def best_experts_choose_groups_unfused(config: Config, world: int | None) -> UserError | None:
    """Transformer Engine's fused router adds up a group's experts as megatron-core does; a replay of recorded choices
    stands where the best expert of a group is looked for."""
    model = config.model
    given = [name for name in ("moe_router_fusion", "moe_enable_routing_replay") if model.megatron.get(name)]
    if not given or model.moe_router_num_groups is None:
        return None
    wanted = {"model.moe_router_group_score: sum": model.moe_router_group_score == "sum"}
    return needs(f"{TABLE}.{given[0]}: true with groups", wanted)


RULES = (
    fp32_residual_is_of_half_precision,
    te_cross_entropy_is_not_used,
    deferred_embedding_gradients_have_a_bubble,
    flushed_sends_are_overlapped,
    overlapped_expert_traffic_can_be_hidden,
    delayed_weight_gradients_hide_traffic,
    whole_layers_are_offloaded_alone,
    clipped_queries_have_a_threshold,
    padded_routes_are_quantised,
    probabilities_weigh_one_input,
    latent_experts_exist,
    best_experts_choose_groups_unfused,
)
