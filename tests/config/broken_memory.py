"""Configs that break the rules of recompute, offload, CUDA graphs and `model.megatron`, and legal ones beside them."""

from __future__ import annotations

MOE = ("model.family=gpt", "model.num_moe_experts=4")
FULL = ("model.recompute_granularity=full", "model.recompute_method=uniform")
SELECTIVE = "model.recompute_granularity=selective"
OFFLOAD = "model.fine_grained_activation_offloading=true"
LOCAL = "model.cuda_graph_impl=local"
BF16 = "precision.dtype=bf16"
TABLE = "model.megatron"
GROUPS = ("model.moe_router_num_groups=4", "model.moe_router_group_topk=2", "model.moe_router_group_score=max")

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    ("full_recompute_says_what", ("model.recompute_granularity=full",), None, "set model.recompute_method: uniform"),
    (
        "full_recompute_says_what",
        (SELECTIVE, "model.recompute_num_layers=1"),
        None,
        "model.recompute_num_layers: goes with recompute_granularity: full only",
    ),
    (
        "recompute_fits_stage",
        (*FULL, "model.recompute_num_layers=3"),
        None,
        "chunks of 3 layers do not fill a stage of 4; expected one of 1, 2, 4",
    ),
    (
        "recompute_fits_stage",
        (*FULL, "model.recompute_num_layers=2", "parallel.pipeline=2", "parallel.virtual_pipeline=2"),
        None,
        "chunks of 2 layers do not fill a stage of 1; expected one of 1",
    ),
    (
        "recompute_fits_stage",
        (*FULL, "model.recompute_method=block", "model.recompute_num_layers=3", "parallel.pipeline=2"),
        None,
        "3 is more than the 2 layers of a stage",
    ),
    (
        "recomputed_predictions_go_one_by_one",
        (*FULL, "model.family=gpt", "model.mtp_num_layers=1", "model.recompute_num_layers=2"),
        None,
        "2 with mtp_num_layers; set model.recompute_num_layers: 1",
    ),
    (
        "recomputed_modules_are_selective",
        ("model.recompute_modules=[mlp]",),
        None,
        "recompute_modules needs model.recompute_granularity: selective",
    ),
    ("recomputed_modules_are_selective", (SELECTIVE, "model.recompute_modules=[]"), None, "is empty; e.g. [core_attn]"),
    (
        "recomputed_modules_exist",
        (SELECTIVE, "model.recompute_modules=[layernorm, mla_up_proj]"),
        None,
        "recompute_modules: mla_up_proj needs model.multi_latent_attention: true",
    ),
    (
        "recomputed_modules_exist",
        (*MOE, SELECTIVE, "model.recompute_modules=[moe_act]"),
        None,
        "recompute_modules: moe_act needs model.moe_grouped_gemm: true",
    ),
    (
        "recomputed_mlp_is_dense",
        (*MOE, SELECTIVE, "model.recompute_modules=[mlp]"),
        None,
        "mlp, and every layer has experts; write moe in its place",
    ),
    (
        "overlapped_shared_experts_are_kept",
        (
            *MOE,
            SELECTIVE,
            "model.recompute_modules=[shared_experts]",
            "model.moe_shared_expert_intermediate_size=64",
            "model.moe_shared_expert_overlap=true",
        ),
        None,
        "set model.moe_shared_expert_overlap: false, or take shared_experts out",
    ),
    (
        "saved_activations_are_divided_once",
        (
            *FULL,
            "model.recompute_num_layers=1",
            "model.distribute_saved_activations=true",
            "parallel.tensor=2",
            "parallel.sequence=true",
        ),
        None,
        "distribute_saved_activations: true needs parallel.sequence: false",
    ),
    ("offload_has_modules", (OFFLOAD,), None, "needs model.offload_modules, e.g. [core_attn, attn_proj]"),
    (
        "offload_has_modules",
        ("model.offload_modules=[core_attn]",),
        None,
        "needs model.fine_grained_activation_offloading: true",
    ),
    (
        "offloaded_projection_has_its_input",
        (OFFLOAD, "model.offload_modules=[attn_proj]"),
        None,
        "offload_modules: attn_proj needs core_attn beside it",
    ),
    (
        "offloaded_experts_exist",
        (OFFLOAD, "model.offload_modules=[expert_fc1]"),
        None,
        "offload_modules: expert_fc1 needs model.num_moe_experts",
    ),
    (
        "activations_are_kept_or_recomputed",
        (OFFLOAD, "model.offload_modules=[core_attn]", *FULL, "model.recompute_num_layers=1"),
        None,
        "set model.recompute_granularity: selective, or offload nothing",
    ),
    (
        "activations_are_kept_or_recomputed",
        (*MOE, OFFLOAD, "model.offload_modules=[expert_fc1, moe_act]", SELECTIVE, "model.recompute_modules=[moe]"),
        None,
        "expert_fc1, moe_act inside moe, which is recomputed",
    ),
    (
        "graphs_hold_whole_layers",
        (LOCAL, *FULL, "model.recompute_num_layers=1"),
        None,
        "local with recompute_granularity: full; set model.recompute_granularity: selective",
    ),
    (
        "graphed_recompute_draws_nothing",
        (LOCAL, SELECTIVE, "model.attention_dropout=0.1"),
        None,
        "attention_dropout: is drawn again in a recompute inside a CUDA graph; set model.cuda_graph_impl: none",
    ),
    (
        "graphed_experts_have_fixed_shapes",
        (*MOE, LOCAL),
        None,
        "needs model.moe_expert_capacity_factor and model.moe_pad_expert_input_to_capacity: true; "
        "set that, or name what is captured",
    ),
    (
        "graphed_layers_take_no_documents",
        (LOCAL, "data.reset_attention_mask=true"),
        None,
        "local with data.reset_attention_mask: true; set model.cuda_graph_impl: none",
    ),
    (
        "graphed_activations_are_offloaded_by_te",
        (LOCAL, OFFLOAD, "model.offload_modules=[core_attn]"),
        None,
        "set model.cuda_graph_impl: transformer_engine",
    ),
    (
        "fp32_residual_is_of_half_precision",
        (f"{TABLE}.fp32_residual_connection=true",),
        None,
        "fp32_residual_connection: true needs precision.dtype: bf16 or fp16",
    ),
    (
        "te_cross_entropy_is_not_used",
        (f"{TABLE}.cross_entropy_fusion_impl=te",),
        None,
        "te is unstable; set it to native",
    ),
    (
        "deferred_embedding_gradients_have_a_bubble",
        (f"{TABLE}.defer_embedding_wgrad_compute=true",),
        None,
        "needs parallel.pipeline above 1 and kernels.gradient_accumulation_fusion: true",
    ),
    (
        "flushed_sends_are_overlapped",
        (f"{TABLE}.overlap_p2p_comm_warmup_flush=true",),
        None,
        "overlap_p2p_comm_warmup_flush: true needs parallel.virtual_pipeline above 1",
    ),
    (
        "overlapped_expert_traffic_can_be_hidden",
        (*MOE, f"{TABLE}.overlap_moe_expert_parallel_comm=true", "parallel.pipeline=2"),
        None,
        "needs parallel.expert above 1 and parallel.virtual_pipeline above 1 and precision.dtype: bf16 or fp16",
    ),
    (
        "overlapped_expert_traffic_can_be_hidden",
        (
            *MOE,
            BF16,
            SELECTIVE,
            "model.recompute_modules=[moe]",
            f"{TABLE}.overlap_moe_expert_parallel_comm=true",
            "parallel.expert=2",
        ),
        None,
        "needs model.recompute_modules without moe",
    ),
    (
        "delayed_weight_gradients_hide_traffic",
        (f"{TABLE}.delay_wgrad_compute=true",),
        None,
        "delay_wgrad_compute: true needs model.megatron.overlap_moe_expert_parallel_comm: true",
    ),
    (
        "whole_layers_are_offloaded_alone",
        (f"{TABLE}.cpu_offloading=true", f"{TABLE}.cpu_offloading_num_layers=4", "parallel.pipeline=2"),
        None,
        "needs model.megatron.cpu_offloading_num_layers from 1 to 3 and parallel.pipeline: 1",
    ),
    (
        "clipped_queries_have_a_threshold",
        (f"{TABLE}.qk_clip=true", f"{TABLE}.qk_clip_alpha=1.5"),
        None,
        "qk_clip_alpha: found 1.5; expected a number between 0 and 1",
    ),
    (
        "padded_routes_are_quantised",
        (*MOE, f"{TABLE}.moe_router_padding_for_quantization=true", "model.moe_token_dispatcher_type=allgather"),
        None,
        "needs precision.fp8 or precision.fp4 and model.moe_token_dispatcher_type: alltoall or flex",
    ),
    (
        "probabilities_weigh_one_input",
        (*MOE, f"{TABLE}.moe_apply_probs_on_input=true"),
        None,
        "moe_apply_probs_on_input: true needs model.moe_router_topk: 1",
    ),
    (
        "latent_experts_exist",
        (f"{TABLE}.moe_latent_size=32",),
        None,
        "model.megatron.moe_latent_size needs model.num_moe_experts",
    ),
    (
        "best_experts_choose_groups_unfused",
        (*MOE, *GROUPS, f"{TABLE}.moe_router_fusion=true"),
        None,
        "moe_router_fusion: true with groups needs model.moe_router_group_score: sum",
    ),
    (
        "best_experts_choose_groups_unfused",
        (*MOE, *GROUPS, f"{TABLE}.moe_enable_routing_replay=true"),
        None,
        "moe_enable_routing_replay: true with groups needs model.moe_router_group_score: sum",
    ),
]

LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    ((*FULL, "model.recompute_num_layers=2", "parallel.pipeline=2"), 4),
    ((*FULL, "model.recompute_num_layers=1", "model.distribute_saved_activations=true", "parallel.tensor=2"), 2),
    ((SELECTIVE, "model.recompute_modules=[core_attn, layernorm, mlp]"), 1),
    ((*MOE, SELECTIVE, "model.recompute_modules=[moe, mlp]", "model.moe_layer_freq=[0, 1, 1, 1]"), 1),
    ((OFFLOAD, "model.offload_modules=[core_attn, attn_proj]", SELECTIVE, "model.recompute_modules=[layernorm]"), 1),
    ((*MOE, OFFLOAD, "model.offload_modules=[expert_fc1, moe_act]"), 1),
    ((LOCAL, SELECTIVE, "model.hidden_dropout=0.1"), 1),
    (
        (
            *MOE,
            LOCAL,
            "model.moe_expert_capacity_factor=1.0",
            "model.moe_pad_expert_input_to_capacity=true",
        ),
        1,
    ),
    (
        (
            *MOE,
            BF16,
            f"{TABLE}.overlap_moe_expert_parallel_comm=true",
            f"{TABLE}.delay_wgrad_compute=true",
            "parallel.expert=2",
        ),
        2,
    ),
    ((f"{TABLE}.cpu_offloading=true", f"{TABLE}.cpu_offloading_num_layers=2"), 1),
    ((f"{TABLE}.qk_clip=true", f"{TABLE}.cross_entropy_fusion_impl=native"), 1),
]
