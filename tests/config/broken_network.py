"""Configs that break the rules of families, attention and multi-token prediction, and legal ones beside them."""

from __future__ import annotations

GPT = "model.family=gpt"
LATENT = (GPT, "model.multi_latent_attention=true", "model.num_query_groups=4")
LLAMA3 = "kind: llama3, original_max_position_embeddings: 32"
YARN = "kind: yarn, factor: 2, original_max_position_embeddings: 32"

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    (
        "saved_family_converts",
        ("checkpoint.also_save_hf=true", "model.family=gpt"),
        None,
        "family gpt does not convert to Hugging Face",
    ),
    (
        "family_holds_architecture",
        ("model.qk_layernorm=true",),
        None,
        "true is not what family llama has, false; take it out, or set model.family to one of "
        "qwen3, qwen3_moe, deepseek_v2, deepseek_v3, glm4_moe, gpt",
    ),
    (
        "family_holds_architecture",
        ("model.num_moe_experts=4", "model.window_size=[15, 0]"),
        None,
        "[15, 0] is not what family llama has, null (so are num_moe_experts); "
        "take it out, or set model.family to one of mistral, qwen2, qwen3, mixtral, gpt",
    ),
    (
        "family_holds_architecture",
        ("model.family=qwen3_moe", "model.num_moe_experts=4", "model.qk_layernorm=false"),
        None,
        "model.qk_layernorm: false is not what family qwen3_moe has, true",
    ),
    (
        "family_has_what_it_needs",
        ("model.family=mixtral",),
        None,
        "model.num_moe_experts: missing; family mixtral (Mixtral 8x7B and 8x22B) needs it",
    ),
    (
        "sandwiched_layers_are_dense",
        (GPT, "model.sandwich_norm=true", "model.num_moe_experts=4"),
        None,
        "model.sandwich_norm: true with num_moe_experts: 4; set model.sandwich_norm: false",
    ),
    (
        "query_groups_divide_heads",
        ("model.num_query_groups=3",),
        None,
        "3 does not divide num_attention_heads=4; expected one of 1, 2, 4",
    ),
    (
        "heads_divide_hidden_size",
        ("model.hidden_size=66",),
        None,
        "66 is no multiple of num_attention_heads=4; nearest: 64 or 68",
    ),
    ("rotated_channels_are_pairs", ("model.kv_channels=15",), None, "15 is odd"),
    (
        "rotated_channels_are_pairs",
        (GPT, "model.rotary_percent=0.32"),
        None,
        "0.32 of kv_channels=16 are 5 channels; expected an even number of them; nearest: 0.25",
    ),
    (
        "rotated_latent_channels_are_pairs",
        (*LATENT, "model.qk_pos_emb_head_dim=15"),
        None,
        "15 is odd; expected an even number; nearest: 14 or 16",
    ),
    (
        "sequences_fit_positions",
        ("model.max_position_embeddings=32",),
        None,
        "64 is more than max_position_embeddings=32",
    ),
    (
        "rotary_settings_have_rope",
        (GPT, "model.position_embedding_type=alibi", "model.rotary_base=500000"),
        None,
        "model.rotary_base needs model.position_embedding_type: rope",
    ),
    (
        "scaling_stretches",
        ("model.rope_scaling={kind: linear, factor: 0.5}",),
        None,
        "0.5 is below 1; expected 1 or more; a model trained on n positions and used on m has factor m / n, e.g. 2",
    ),
    (
        "scaling_has_a_band",
        (f"model.rope_scaling={{{LLAMA3}, low_freq_factor: 4, high_freq_factor: 1}}",),
        None,
        "low_freq_factor: 4 is not below high_freq_factor=1; swap the two, or take both out for 1 and 4",
    ),
    (
        "scaling_has_a_band",
        (f"model.rope_scaling={{{YARN}, beta_slow: 32}}",),
        None,
        "beta_slow: 32 is not below beta_fast=32; swap the two, or take both out for 1 and 32",
    ),
    (
        "scaling_starts_from_fewer_positions",
        ("model.rope_scaling={kind: llama3}",),
        None,
        "8192 is more than max_position_embeddings=64; set model.max_position_embeddings to 8192 or more",
    ),
    (
        "window_looks_back",
        (GPT, "model.window_size=[15, 15]"),
        None,
        "found [15, 15]; expected [positions to the left, 0]; e.g. [15, 0]",
    ),
    (
        "windowed_layers_are_named",
        (GPT, "model.window_attn_skip_freq=2"),
        None,
        "window_attn_skip_freq needs model.window_size",
    ),
    (
        "windowed_layers_are_named",
        (GPT, "model.window_size=[15, 0]", "model.window_attn_skip_freq=[1, 2, 0]"),
        None,
        "found 3 numbers, 0, 1, 2; expected 4 numbers, each 0 or 1",
    ),
    (
        "windowed_layers_are_named",
        (GPT, "model.window_size=[15, 0]", "model.window_attn_skip_freq=0"),
        None,
        "found 0; expected 1 or more",
    ),
    (
        "latent_attention_rotates",
        (*LATENT, "model.position_embedding_type=none"),
        None,
        "multi_latent_attention: true needs model.position_embedding_type: rope",
    ),
    (
        "latent_attention_scales_by_yarn",
        (*LATENT, f"model.rope_scaling={{{LLAMA3}}}"),
        None,
        "llama3 with model.multi_latent_attention; set model.rope_scaling.kind: yarn",
    ),
    (
        "latent_attention_groups_no_queries",
        (*LATENT, "model.num_query_groups=2"),
        None,
        "2 with model.multi_latent_attention; expected num_attention_heads=4; take it out",
    ),
    (
        "latent_attention_has_its_own_channels",
        (*LATENT, "model.kv_channels=32"),
        None,
        "32 with model.multi_latent_attention; take it out; set model.qk_head_dim",
    ),
    ("latent_attention_has_no_qkv_bias", (*LATENT, "model.add_qkv_bias=true"), None, "set model.add_qkv_bias: false"),
    (
        "latents_have_latent_attention",
        (GPT, "model.v_head_dim=32"),
        None,
        "model.v_head_dim needs model.multi_latent_attention: true",
    ),
    (
        "tensor_divides_latents",
        (*LATENT, "parallel.tensor=2", "model.q_lora_rank=31"),
        None,
        "2 does not divide q_lora_rank=31; nearest: 30 or 32",
    ),
    (
        "tensor_divides_latents",
        (*LATENT, "parallel.tensor=4", "model.kv_lora_rank=30"),
        None,
        "4 does not divide kv_lora_rank + qk_pos_emb_head_dim=94; nearest: 92 or 96",
    ),
    (
        "predictions_have_no_learned_positions",
        (GPT, "model.mtp_num_layers=1", "model.position_embedding_type=learned_absolute"),
        None,
        "1 with position_embedding_type: learned_absolute; set model.position_embedding_type: rope",
    ),
    (
        "predictions_fit_the_sequence",
        (GPT, "model.mtp_num_layers=8", "parallel.context=4"),
        None,
        "8 for chunks of 8 tokens; expected fewer than 8",
    ),
    (
        "tied_predictions_have_one_stage",
        (GPT, "model.mtp_num_layers=1", "model.tie_embeddings=true", "parallel.pipeline=2"),
        None,
        "1 with tie_embeddings and pipeline=2; set model.tie_embeddings: false, or parallel.pipeline: 1",
    ),
]

LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    (("model.kv_channels=32", "model.hidden_size=66"), 1),
    ((GPT, "model.activation=gelu", "model.normalization=LayerNorm", "model.add_bias_linear=true"), 1),
    ((GPT, "model.position_embedding_type=learned_absolute", "data.reset_position_ids=true"), 1),
    ((GPT, "model.position_embedding_type=alibi", "parallel.context=2"), 2),
    ((GPT, "model.position_embedding_type=none", "model.mtp_num_layers=2"), 1),
    ((GPT, "model.rotary_percent=0.25", "model.window_size=[15, 0]", "model.window_attn_skip_freq=[1, 0, 1, 0]"), 1),
    ((GPT, "model.window_size=[-1, 0]", "model.window_attn_skip_freq=2"), 1),
    (("model.rope_scaling={kind: linear, factor: 2}",), 1),
    ((f"model.rope_scaling={{{LLAMA3}}}",), 1),
    ((f"model.rope_scaling={{{YARN}}}",), 1),
    ((*LATENT, "model.q_lora_rank=32", f"model.rope_scaling={{{YARN}}}", "parallel.tensor=2"), 2),
    (
        (
            "model.family=deepseek_v3",
            "model.num_query_groups=4",
            "model.num_moe_experts=8",
            "model.moe_router_topk=2",
            "model.moe_router_num_groups=4",
            "model.moe_router_group_topk=2",
            "model.moe_shared_expert_intermediate_size=64",
            "model.moe_layer_freq=[0, 1, 1, 1]",
            "model.mtp_num_layers=1",
            "model.moe_router_load_balancing_type=seq_aux_loss",
            "model.moe_aux_loss_coeff=1e-4",
            "parallel.expert=4",
            "parallel.pipeline=2",
        ),
        8,
    ),
    (("model.family=mixtral", "model.num_moe_experts=8", "model.window_size=[31, 0]", "parallel.expert=4"), 4),
    (("model.family=qwen3_moe", "model.num_moe_experts=8", "model.moe_router_topk=4", "parallel.expert=2"), 2),
]
