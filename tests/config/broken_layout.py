"""Configs that break the rules of the world and of tensor, pipeline and context parallelism, and legal ones."""

from __future__ import annotations

MOE = ("model.family=gpt", "model.num_moe_experts=4")
LATENT = ("model.family=gpt", "model.multi_latent_attention=true", "model.num_query_groups=4")
INTERLEAVED = ("parallel.pipeline=2", "parallel.virtual_pipeline=2")
LAYOUT = "parallel.pipeline_model_parallel_layout"
LEVELS = "parallel.hierarchical_context_parallel_sizes"
MTP = ("model.family=gpt", "model.mtp_num_layers=1")

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    (
        "model_copies_fill_world",
        ("parallel.tensor=2", "parallel.pipeline=4", "train.global_batch_size=12"),
        12,
        "tensor=2 x pipeline=4 = 8 does not divide 12 ranks; "
        "nearest: tensor=1 pipeline=4 (data=3), or tensor=2 pipeline=2 (data=3)",
    ),
    (
        "model_copies_fill_world",
        (
            "model.num_layers=12",
            "model.num_attention_heads=8",
            "model.num_query_groups=8",
            "parallel.tensor=8",
            "parallel.pipeline=4",
            "train.global_batch_size=24",
        ),
        24,
        "tensor=8 x pipeline=4 = 32 does not divide 24 ranks; "
        "nearest: tensor=8 pipeline=3 (data=1), or tensor=4 pipeline=3 (data=2)",
    ),
    (
        "model_copies_fill_world",
        ("parallel.tensor=2", "parallel.context=4"),
        12,
        "tensor=2 x context=4 x pipeline=1 = 8 does not divide 12 ranks; "
        "nearest: tensor=1 context=4 pipeline=1 (data=3), or tensor=2 context=2 pipeline=1 (data=3)",
    ),
    (
        "model_copies_fill_world",
        ("parallel.tensor=2", "parallel.sequence=true"),
        7,
        "no layout on 7 ranks holds the other rules; mend what breaks those, or take another number of ranks",
    ),
    (
        "expert_sets_fill_world",
        (*MOE, "parallel.expert=4", "train.global_batch_size=12"),
        6,
        "parallel.expert: expert=4 x pipeline=1 = 4 does not divide 6 ranks; nearest: ",
    ),
    (
        "expert_sets_fill_world",
        (*MOE, "parallel.expert=4", "parallel.tensor=2", "parallel.sequence=true", "train.global_batch_size=12"),
        12,
        "expert=4 x expert_tensor=2 x pipeline=1 = 8 does not divide 12 ranks; nearest: ",
    ),
    (
        "tensor_divides_heads",
        ("parallel.tensor=8",),
        None,
        "8 does not divide num_attention_heads=4; expected a divisor of 4",
    ),
    ("tensor_divides_query_groups", ("parallel.tensor=4",), None, "or set model.num_query_groups to 4"),
    (
        "tensor_divides_ffn",
        ("parallel.tensor=2", "model.ffn_hidden_size=191"),
        None,
        "set model.ffn_hidden_size to 190 or 192",
    ),
    (
        "tensor_divides_vocabulary",
        ("parallel.tensor=2", "model.make_vocab_size_divisible_by=1"),
        None,
        "make_vocab_size_divisible_by=1; expected a divisor of 1; or set model.make_vocab_size_divisible_by to 2",
    ),
    ("sequence_needs_tensor", ("parallel.sequence=true",), None, "needs tensor parallelism"),
    (
        "tensor_divides_sequence",
        ("parallel.sequence=true", "parallel.tensor=2", "model.seq_length=63"),
        None,
        "set model.seq_length to 62 or 64",
    ),
    (
        "tensor_divides_sequence",
        (
            "parallel.sequence=true",
            "parallel.tensor=4",
            "parallel.context=2",
            "model.seq_length=68",
            "model.num_query_groups=4",
        ),
        None,
        "tensor=4 x context=2 = 8 does not divide seq_length=68; set model.seq_length to 64 or 72",
    ),
    (
        "overlapped_tensor_traffic_is_sequence_parallel",
        ("parallel.tensor=2", "parallel.tp_comm_overlap=true"),
        None,
        "needs parallel.sequence: true; set that, or take parallel.tp_comm_overlap out",
    ),
    (
        "stages_of_experts_are_stages",
        (*MOE, "parallel.order=tp-cp-ep-pp-dp", "parallel.pipeline=2", "parallel.expert=2"),
        None,
        "needs expert x expert_tensor = tensor x context, found 2 x 1 and 1 x 1; set parallel.order: tp-cp-ep-dp-pp",
    ),
    (
        "stages_are_equal",
        ("parallel.pipeline=3",),
        None,
        "3 does not divide num_layers=4; expected one of 1, 2, 4; or set model.num_layers to 3 or 6",
    ),
    (
        "stages_are_equal",
        (*INTERLEAVED, "model.num_layers=6"),
        None,
        "2 x virtual_pipeline=2 = 4 does not divide num_layers=6; expected one of 1, 3; "
        "or set model.num_layers to 4 or 8",
    ),
    (
        "stages_are_equal",
        ("parallel.pipeline=2", "parallel.account_for_loss_in_pipeline_split=true"),
        None,
        "2 does not divide num_layers=4 + the loss; expected one of 1, 5",
    ),
    (
        "stages_are_equal",
        (*INTERLEAVED, "parallel.account_for_embedding_in_pipeline_split=true"),
        None,
        "does not divide num_layers=4 + the embedding; expected a virtual_pipeline that divides 5",
    ),
    (
        "uneven_stages_hold_all_layers",
        ("parallel.pipeline=3", "parallel.num_layers_in_first_pipeline_stage=1"),
        None,
        "leaves 3 layers for 2 stages between first and last; expected a multiple of 2 to be left",
    ),
    (
        "uneven_stages_hold_all_layers",
        (
            "parallel.pipeline=2",
            "parallel.num_layers_in_first_pipeline_stage=1",
            "parallel.num_layers_in_last_pipeline_stage=1",
        ),
        None,
        "leaves 2 layers for 0 stages between first and last; expected none to be left",
    ),
    (
        "uneven_stages_hold_all_layers",
        (*INTERLEAVED, "parallel.num_layers_in_last_pipeline_stage=1"),
        None,
        "leaves 3 layers for 1 stages between first and last of 2 chunks each",
    ),
    (
        "uneven_stages_hold_all_layers",
        ("parallel.num_layers_in_last_pipeline_stage=3",),
        None,
        "set parallel.pipeline above 1, or take num_layers_in_last_pipeline_stage out",
    ),
    (
        "layers_are_divided_one_way",
        (
            "parallel.pipeline=2",
            "parallel.num_layers_in_first_pipeline_stage=1",
            f"{LAYOUT}=Et|tttL",
        ),
        None,
        "pipeline_model_parallel_layout and num_layers_in_first_pipeline_stage or num_layers_in_last_pipeline_stage "
        "are both set; keep one of them",
    ),
    (
        "layers_are_divided_one_way",
        (
            "parallel.pipeline=2",
            "parallel.num_layers_in_last_pipeline_stage=1",
            "parallel.account_for_loss_in_pipeline_split=true",
        ),
        None,
        "account_for_embedding_in_pipeline_split or account_for_loss_in_pipeline_split are both set",
    ),
    (
        "layout_has_known_letters",
        ("parallel.pipeline=2", f"{LAYOUT}=E(t(t|))*2tL"),
        None,
        "expected letters E, t, m and L; write groups as (...)*n without groups inside",
    ),
    (
        "layout_has_all_stages",
        ("parallel.pipeline=2", f"{LAYOUT}=Et|t|t|tL"),
        None,
        "has 4 stages; expected pipeline=2 x virtual_pipeline=1 = 2; set parallel.virtual_pipeline: 2",
    ),
    (
        "layout_has_all_stages",
        ("parallel.pipeline=2", f"{LAYOUT}=Et|t|ttL"),
        None,
        "has 3 stages; expected pipeline=2 x virtual_pipeline=1 = 2; add or join stages by `|`",
    ),
    (
        "layout_has_all_layers",
        ("parallel.pipeline=2", f"{LAYOUT}=Et*3|tmL"),
        None,
        "has 1 m (expected 0)",
    ),
    ("layout_has_all_layers", ("parallel.pipeline=2", f"{LAYOUT}=Et*3|ttL"), None, "has 5 t (expected 4)"),
    (
        "layout_is_in_order",
        ("parallel.pipeline=2", f"{LAYOUT}=ttE|Ltt"),
        None,
        "E is not the first letter, L is not the last letter; expected E ... t ... m ... L",
    ),
    (
        "layout_is_in_order",
        (*MTP, *INTERLEAVED, f"{LAYOUT}=Et|tm|t|tL"),
        None,
        "a t follows an m, m stands in a chunk that is not its rank's last",
    ),
    (
        "layout_is_in_order",
        (*MTP, *INTERLEAVED, f"{LAYOUT}=Et|tt|tm|L"),
        None,
        "m stands on the first pipeline rank",
    ),
    (
        "layout_is_in_order",
        (*MTP, "model.mtp_num_layers=2", "parallel.pipeline=2", f"{LAYOUT}=Ettttm|mL"),
        None,
        "the m stand in several stages",
    ),
    (
        "interleaving_needs_stages",
        ("parallel.virtual_pipeline=2",),
        None,
        "2 chunks need parallel.pipeline above 1; set parallel.pipeline: 2, or virtual_pipeline: 1",
    ),
    (
        "interleaved_sends_are_apart",
        (*INTERLEAVED, "parallel.overlap_p2p_comm=false"),
        None,
        "set parallel.overlap_p2p_comm: true, or parallel.pipeline above 2",
    ),
    (
        "groups_are_of_the_interleaved_schedule",
        ("parallel.pipeline=2", "parallel.microbatch_group_size_per_vp_stage=2"),
        None,
        "microbatch_group_size_per_vp_stage: 2 needs parallel.virtual_pipeline above 1",
    ),
    (
        "interleaved_groups_are_full",
        (*INTERLEAVED, "train.global_batch_size=6"),
        2,
        "6 makes 3 micro-batches a rank, no whole groups of 2; nearest: 4 or 8",
    ),
    (
        "interleaved_groups_are_full",
        (*INTERLEAVED, "parallel.microbatch_group_size_per_vp_stage=1"),
        2,
        "1 is less than pipeline=2; expected 2 or more",
    ),
    (
        "interleaved_groups_are_full",
        (*INTERLEAVED, "train.rampup_batch_size=[2, 2, 16]"),
        2,
        "2 makes 1 micro-batches a rank, no whole groups of 2",
    ),
    (
        "context_divides_sequence",
        ("parallel.context=2", "model.seq_length=62"),
        None,
        "2 x context=2 = 4 does not divide seq_length=62; set model.seq_length to 60 or 64",
    ),
    (
        "exchanged_heads_divide",
        ("parallel.context=4", "parallel.cp_comm_type=a2a"),
        None,
        "expected at most 2 ranks to exchange heads; or set cp_comm_type: p2p",
    ),
    (
        "exchanged_heads_divide",
        (*LATENT, "parallel.context=8", "parallel.cp_comm_type=a2a+p2p", f"{LEVELS}=[8, 1]"),
        None,
        "a2a+p2p needs tensor=1 x 8 ranks to divide num_attention_heads=4",
    ),
    (
        "two_level_exchange_has_levels",
        ("parallel.context=8", "parallel.cp_comm_type=a2a+p2p"),
        None,
        "a2a+p2p needs parallel.hierarchical_context_parallel_sizes; set it to [4, 2]",
    ),
    (
        "levels_are_of_the_two_level_exchange",
        ("parallel.context=4", f"{LEVELS}=[2, 2]"),
        None,
        "needs parallel.cp_comm_type: a2a+p2p",
    ),
    (
        "levels_make_the_context",
        ("parallel.context=4", "parallel.cp_comm_type=a2a+p2p", f"{LEVELS}=[2, 4]"),
        None,
        "[2, 4] are not two levels of context=4; nearest: [2, 2]",
    ),
    (
        "ring_knows_no_window",
        ("model.family=gpt", "model.window_size=[15, 0]", "parallel.context=2", "parallel.cp_comm_type=p2p"),
        None,
        "p2p does not go with model.window_size; set parallel.cp_comm_type: all_gather",
    ),
    (
        "alibi_is_gathered",
        (
            "model.family=gpt",
            "model.position_embedding_type=alibi",
            "parallel.context=2",
            "parallel.cp_comm_type=p2p",
        ),
        None,
        "does not go with model.position_embedding_type: alibi; set parallel.cp_comm_type: all_gather",
    ),
    (
        "packed_predictions_are_not_split_over_ranks",
        (*MTP, "data.reset_attention_mask=true", "parallel.context=2"),
        None,
        "reset_attention_mask: true with model.mtp_num_layers needs parallel.context: 1",
    ),
]

LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    (("parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true", "parallel.tp_comm_overlap=true"), 16),
    (("parallel.tensor=2", "parallel.context=2", "parallel.sequence=true"), 8),
    (("parallel.context=2", "parallel.cp_comm_type=a2a"), 8),
    (("parallel.context=2", "data.reset_attention_mask=true"), 2),
    (
        (
            "parallel.context=8",
            "parallel.cp_comm_type=a2a+p2p",
            f"{LEVELS}=[2, 4]",
        ),
        8,
    ),
    ((*LATENT, "parallel.context=2", "parallel.cp_comm_type=p2p"), 2),
    (INTERLEAVED, 4),
    ((*INTERLEAVED, "parallel.microbatch_group_size_per_vp_stage=4", "train.global_batch_size=16"), 4),
    ((*INTERLEAVED, "parallel.microbatch_group_size_per_vp_stage=4", "train.global_batch_size=12"), 2),
    (("parallel.pipeline=4", "parallel.virtual_pipeline=1", "parallel.overlap_p2p_comm=false"), 4),
    (
        (
            "parallel.pipeline=3",
            "parallel.num_layers_in_first_pipeline_stage=1",
            "parallel.num_layers_in_last_pipeline_stage=1",
        ),
        3 * 4,
    ),
    (("parallel.pipeline=2", "parallel.num_layers_in_last_pipeline_stage=1"), 2),
    (
        (
            "parallel.pipeline=2",
            "parallel.account_for_embedding_in_pipeline_split=true",
            "parallel.account_for_loss_in_pipeline_split=true",
        ),
        2,
    ),
    (("parallel.pipeline=2", f"{LAYOUT}=Ettt|tL"), 2),
    ((*INTERLEAVED, f"{LAYOUT}=E|(tt|)*2L"), 2),
    ((*MTP, *INTERLEAVED, f"{LAYOUT}=Et|t|t,t|mL"), 2),
    ((*MTP, "parallel.pipeline=2", "parallel.context=2"), 4),
    ((*MOE, "parallel.expert=4"), 4),
    ((*MOE, "parallel.expert=2", "parallel.tensor=2", "parallel.sequence=true"), 4),
    ((*MOE, "parallel.expert=2", "parallel.tensor=2", "parallel.sequence=true", "parallel.expert_tensor=1"), 4),
    ((*MOE, "parallel.expert=2", "parallel.tensor=2", "parallel.context=2", "parallel.sequence=true"), 8),
    (
        (
            *MOE,
            "parallel.order=tp-cp-ep-pp-dp",
            "parallel.pipeline=2",
            "parallel.expert=2",
            "parallel.tensor=2",
            "parallel.expert_tensor=1",
            "parallel.sequence=true",
        ),
        8,
    ),
]
