"""Configs that break the rules of mixtures of experts and of their router, and legal ones beside them."""

from __future__ import annotations

MOE = ("model.family=gpt", "model.num_moe_experts=8")
SHARED = "model.moe_shared_expert_intermediate_size=64"
SPLIT = ("parallel.tensor=2", "parallel.sequence=true")
SIGMOID = "model.moe_router_score_function=sigmoid"
SINKHORN = "model.moe_router_load_balancing_type=sinkhorn"

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    ("expert_ranks_have_experts", ("parallel.expert=2",), None, "parallel.expert: 2 needs model.num_moe_experts"),
    (
        "expert_ranks_divide_experts",
        (*MOE, "parallel.expert=3"),
        None,
        "3 does not divide num_moe_experts=8; expected one of 1, 2, 4, 8",
    ),
    (
        "expert_tensor_is_of_experts",
        ("parallel.expert_tensor=2",),
        None,
        "2 is not tensor=1, and there are no experts; take parallel.expert_tensor out",
    ),
    (
        "expert_tensor_divides_experts",
        (*MOE, *SPLIT, "model.moe_ffn_hidden_size=33"),
        None,
        "2 does not divide moe_ffn_hidden_size=33; expected a divisor of 33; "
        "or set model.moe_ffn_hidden_size to 32 or 34",
    ),
    (
        "resplit_experts_are_spread",
        (*MOE, *SPLIT, "parallel.expert_tensor=1"),
        None,
        "1 is not tensor=2, with expert=1; set parallel.expert above 1, or take expert_tensor out",
    ),
    (
        "expert_tensor_divides_experts",
        (*MOE, "parallel.expert_tensor=5"),
        None,
        "5 does not divide moe_ffn_hidden_size=192",
    ),
    (
        "tensor_divides_shared_experts",
        (*MOE, *SPLIT, "model.moe_shared_expert_intermediate_size=33"),
        None,
        "moe_shared_expert_intermediate_size to 32 or 34",
    ),
    (
        "split_experts_are_sequence_parallel",
        (*MOE, "parallel.tensor=2"),
        None,
        "set parallel.sequence: true, or parallel.tensor: 1 with more parallel.expert",
    ),
    (
        "settings_of_experts_have_experts",
        ("model.family=gpt", "model.moe_aux_loss_coeff=0.01"),
        None,
        "model.moe_aux_loss_coeff needs model.num_moe_experts",
    ),
    (
        "expert_layers_are_named",
        (*MOE, "model.moe_layer_freq=[0, 1, 1]"),
        None,
        "found 3 numbers, 2 in sum; expected 4 numbers, each 0 or 1, some of them 1",
    ),
    ("expert_layers_are_named", (*MOE, "model.moe_layer_freq=0"), None, "found 0; expected 1 or more"),
    (
        "gate_has_shared_experts",
        (*MOE, "model.moe_shared_expert_gate=true"),
        None,
        "moe_shared_expert_gate: true needs model.moe_shared_expert_intermediate_size",
    ),
    (
        "overlapped_shared_experts_exist",
        (*MOE, "model.moe_shared_expert_overlap=true", "model.moe_token_dispatcher_type=allgather"),
        None,
        "needs model.moe_shared_expert_intermediate_size and model.moe_token_dispatcher_type: alltoall",
    ),
    (
        "biased_experts_are_whole",
        (*MOE, *SPLIT, "model.add_bias_linear=true"),
        None,
        "set parallel.expert_tensor: 1, or add_bias_linear: false",
    ),
    ("shared_experts_have_no_bias", (*MOE, SHARED, "model.add_bias_linear=true"), None, "not go with shared experts"),
    (
        "grouped_biases_are_not_fused",
        (*MOE, "model.moe_grouped_gemm=true", "model.add_bias_linear=true"),
        None,
        "needs kernels.bias_dropout_fusion: false",
    ),
    (
        "flex_dispatcher_has_ranks",
        (*MOE, "model.moe_token_dispatcher_type=flex"),
        None,
        "flex needs parallel.expert or parallel.tensor above 1; set model.moe_token_dispatcher_type: alltoall",
    ),
    (
        "padding_has_a_capacity",
        (*MOE, "model.moe_pad_expert_input_to_capacity=true"),
        None,
        "needs model.moe_expert_capacity_factor",
    ),
    (
        "padded_capacity_fits_the_tokens",
        (*MOE, "model.moe_pad_expert_input_to_capacity=true", "model.moe_expert_capacity_factor=5.0"),
        None,
        "5 x moe_router_topk=2 is more than num_moe_experts=8; expected at most 4",
    ),
    (
        "deepep_does_not_pad",
        (
            *MOE,
            "model.moe_pad_expert_input_to_capacity=true",
            "model.moe_expert_capacity_factor=1.0",
            "model.moe_token_dispatcher_type=flex",
            "parallel.expert=2",
        ),
        None,
        "set model.moe_token_dispatcher_type: alltoall, or moe_flex_dispatcher_backend: hybridep",
    ),
    (
        "drop_policy_has_a_capacity",
        (*MOE, "model.moe_token_drop_policy=position"),
        None,
        "moe_token_drop_policy: position needs model.moe_expert_capacity_factor",
    ),
    (
        "token_has_experts_to_choose",
        (*MOE, "model.moe_router_topk=9"),
        None,
        "9 is more than num_moe_experts=8; expected at most 8",
    ),
    (
        "one_expert_is_scored_among_all",
        (*MOE, "model.moe_router_topk=1"),
        None,
        "leaves the router no gradient; set model.moe_router_pre_softmax: true",
    ),
    (
        "pre_softmax_is_of_softmax",
        (*MOE, SIGMOID, "model.moe_router_pre_softmax=true"),
        None,
        "moe_router_pre_softmax: true needs model.moe_router_score_function: softmax",
    ),
    (
        "expert_bias_moves_sigmoids",
        (*MOE, "model.moe_router_enable_expert_bias=true"),
        None,
        "moe_router_enable_expert_bias: true needs model.moe_router_score_function: sigmoid",
    ),
    (
        "group_routing_has_both_numbers",
        (*MOE, "model.moe_router_num_groups=4"),
        None,
        "model.moe_router_num_groups needs model.moe_router_group_topk",
    ),
    (
        "groups_divide_experts",
        (*MOE, "model.moe_router_num_groups=3", "model.moe_router_group_topk=1"),
        None,
        "3 does not divide num_moe_experts=8; expected one of 1, 2, 4, 8",
    ),
    (
        "groups_hold_the_chosen",
        (*MOE, "model.moe_router_num_groups=4", "model.moe_router_group_topk=5"),
        None,
        "5 is more than moe_router_num_groups=4; expected at most 4",
    ),
    (
        "groups_hold_the_chosen",
        (*MOE, "model.moe_router_num_groups=4", "model.moe_router_group_topk=1", "model.moe_router_topk=3"),
        None,
        "1 groups of 2 for moe_router_topk=3; expected a moe_router_topk from 1 to 2",
    ),
    (
        "balancing_loss_has_a_kind",
        (*MOE, SIGMOID, "model.moe_aux_loss_coeff=0.01", "model.moe_router_load_balancing_type=none"),
        None,
        "0.01 with moe_router_load_balancing_type: none; set model.moe_router_load_balancing_type: aux_loss",
    ),
    (
        "sinkhorn_chooses_alone",
        (*MOE, SINKHORN, SIGMOID, "model.moe_router_topk_scaling_factor=2.5"),
        None,
        "sinkhorn reads no moe_router_score_function, moe_router_topk_scaling_factor",
    ),
    (
        "sinkhorn_drops_nothing",
        (*MOE, SINKHORN, "model.moe_expert_capacity_factor=1.5"),
        None,
        "1.5 with model.moe_router_load_balancing_type: sinkhorn",
    ),
]

LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    ((*MOE, SHARED, "model.moe_shared_expert_gate=true", "model.moe_shared_expert_overlap=true"), 2),
    ((*MOE, *SPLIT, SHARED, "parallel.expert=2", "model.moe_token_dispatcher_type=allgather"), 4),
    ((*MOE, *SPLIT, "parallel.expert_tensor=1", "parallel.expert=4", "model.add_bias_linear=true"), 4),
    ((*MOE, "parallel.expert=2", "model.moe_token_dispatcher_type=flex", "model.moe_router_dtype=fp32"), 2),
    (
        (
            *MOE,
            "model.moe_expert_capacity_factor=1.25",
            "model.moe_pad_expert_input_to_capacity=true",
            "model.moe_token_drop_policy=position",
            "model.moe_aux_loss_coeff=0.01",
            "model.moe_z_loss_coeff=1e-3",
        ),
        1,
    ),
    ((*MOE, "model.moe_router_topk=1", "model.moe_router_pre_softmax=true", "model.moe_layer_freq=2"), 1),
    ((*MOE, "model.moe_router_topk=1", SINKHORN), 1),
    (
        (
            *MOE,
            SIGMOID,
            "model.moe_router_enable_expert_bias=true",
            "model.moe_router_load_balancing_type=none",
            "model.moe_router_num_groups=4",
            "model.moe_router_group_topk=2",
            "model.moe_router_topk=4",
        ),
        1,
    ),
    (
        (
            *MOE,
            "model.moe_router_num_groups=4",
            "model.moe_router_group_topk=2",
            "model.moe_router_group_score=max",
        ),
        1,
    ),
    (
        (
            *MOE,
            "model.moe_grouped_gemm=true",
            "model.add_bias_linear=true",
            "kernels.bias_dropout_fusion=false",
        ),
        1,
    ),
]
