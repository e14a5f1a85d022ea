"""Rows that many families share: tables are put together from them, and from rows of the family's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron_lm_zh.families.base import ConfigRow, CopyRow, FixedRow, Given, WeightRow

LAYER = "model.layers.{layer}."
UNTIED = ("tie_embeddings", False)

WORD_EMBEDDING = WeightRow(
    "embedding.word_embeddings.weight",
    ("model.embed_tokens.weight",),
    shape=("padded_vocab_size", "hidden_size"),
    op="padded_vocab",
    shard_axis=0,
)
FINAL_NORM = WeightRow("decoder.final_layernorm.weight", ("model.norm.weight",), shape=("hidden_size",))
OUTPUT_LAYER = WeightRow(
    "output_layer.weight",
    ("lm_head.weight",),
    shape=("padded_vocab_size", "hidden_size"),
    op="padded_vocab",
    shard_axis=0,
    when=(UNTIED,),
)
EMBEDDINGS = (WORD_EMBEDDING, FINAL_NORM, OUTPUT_LAYER)
"""Word embedding, last norm, output layer."""

INPUT_NORM = WeightRow(
    "{block}self_attention.linear_qkv.layer_norm_weight",
    (LAYER + "input_layernorm.weight",),
    shape=("hidden_size",),
    stands="layers",
)
QKV = WeightRow(
    "{block}self_attention.linear_qkv.weight",
    (LAYER + "self_attn.q_proj.weight", LAYER + "self_attn.k_proj.weight", LAYER + "self_attn.v_proj.weight"),
    shape=("qkv_size", "hidden_size"),
    op="grouped_qkv",
    shard_axis=0,
    stands="layers",
)
QKV_BIAS = WeightRow(
    "{block}self_attention.linear_qkv.bias",
    (LAYER + "self_attn.q_proj.bias", LAYER + "self_attn.k_proj.bias", LAYER + "self_attn.v_proj.bias"),
    shape=("qkv_size",),
    op="grouped_qkv",
    shard_axis=0,
    stands="layers",
    when=(("add_qkv_bias", True),),
)
QK_NORMS = (
    WeightRow(
        "{block}self_attention.q_layernorm.weight",
        (LAYER + "self_attn.q_norm.weight",),
        shape=("kv_channels",),
        stands="layers",
        when=(("qk_layernorm", True),),
    ),
    WeightRow(
        "{block}self_attention.k_layernorm.weight",
        (LAYER + "self_attn.k_norm.weight",),
        shape=("kv_channels",),
        stands="layers",
        when=(("qk_layernorm", True),),
    ),
)
OUTPUT_PROJECTION = WeightRow(
    "{block}self_attention.linear_proj.weight",
    (LAYER + "self_attn.o_proj.weight",),
    shape=("hidden_size", "query_size"),
    shard_axis=1,
    stands="layers",
)
ATTENTION = (INPUT_NORM, QKV, QKV_BIAS, *QK_NORMS, OUTPUT_PROJECTION)
"""Grouped-query attention; the bias and the norms of queries and keys stand where the config has them."""

MLP_NORM = WeightRow(
    "{block}mlp.linear_fc1.layer_norm_weight",
    (LAYER + "post_attention_layernorm.weight",),
    shape=("hidden_size",),
    stands="dense",
)
GATE_UP = WeightRow(
    "{block}mlp.linear_fc1.weight",
    (LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
    shape=("gate_up_size", "hidden_size"),
    op="gate_up",
    shard_axis=0,
    stands="dense",
)
DOWN = WeightRow(
    "{block}mlp.linear_fc2.weight",
    (LAYER + "mlp.down_proj.weight",),
    shape=("hidden_size", "ffn_hidden_size"),
    shard_axis=1,
    stands="dense",
)
GATED_MLP = (MLP_NORM, GATE_UP, DOWN)
EXPERTS_NORM = WeightRow(
    "{block}pre_mlp_layernorm.weight",
    (LAYER + "post_attention_layernorm.weight",),
    shape=("hidden_size",),
    stands="experts",
)
ROUTER = WeightRow(
    "{block}mlp.router.weight",
    (LAYER + "mlp.gate.weight",),
    shape=("num_moe_experts", "hidden_size"),
    stands="experts",
)
EXPERT_GATE_UP = WeightRow(
    "{block}mlp.experts.experts.linear_fc1.weight",
    (LAYER + "mlp.experts.{expert}.gate_proj.weight", LAYER + "mlp.experts.{expert}.up_proj.weight"),
    shape=("expert_gate_up_size", "hidden_size"),
    op="gate_up",
    shard_axis=0,
    stands="experts",
)
EXPERT_DOWN = WeightRow(
    "{block}mlp.experts.experts.linear_fc2.weight",
    (LAYER + "mlp.experts.{expert}.down_proj.weight",),
    shape=("hidden_size", "moe_ffn_hidden_size"),
    shard_axis=1,
    stands="experts",
)
EXPERTS = (EXPERTS_NORM, ROUTER, EXPERT_GATE_UP, EXPERT_DOWN)
"""A mixture of experts as Qwen and DeepSeek name it."""

SIZES_WITHOUT_MLP = (
    ConfigRow("num_layers", ("num_hidden_layers",)),
    ConfigRow("hidden_size", ("hidden_size",)),
    ConfigRow("num_attention_heads", ("num_attention_heads",)),
    ConfigRow("vocab_size", ("vocab_size",)),
)
SIZES = (*SIZES_WITHOUT_MLP, ConfigRow("ffn_hidden_size", ("intermediate_size",)))
GROUPED_HEADS = (
    ConfigRow("num_query_groups", ("num_key_value_heads",)),
    ConfigRow("kv_channels", ("head_dim",)),
)
EPSILON = ConfigRow("layernorm_epsilon", ("rms_norm_eps",), default=1e-6)
TRAINED_WITH = (
    ConfigRow("init_method_std", ("initializer_range",), default=0.02),
    ConfigRow("attention_dropout", ("attention_dropout",), default=0.0),
)
SHAPE = (*SIZES, *GROUPED_HEADS, EPSILON, *TRAINED_WITH)
"""Sizes and numbers that most decoders have under the same names."""

# transformers 4 reads the first path, transformers 5 writes and reads the second
ROPE_BASE = ConfigRow("rotary_base", ("rope_theta", "rope_parameters.rope_theta"), default=10000)
ROPE_SCALING = ConfigRow("rope_scaling", ("rope_scaling", "rope_parameters"), op="rope_scaling")
SILU = FixedRow("hidden_act", "silu")
PLAIN = (
    FixedRow("quantization_config", None, written=False),
    FixedRow("rope_parameters.partial_rotary_factor", 1.0, written=False),
    FixedRow("partial_rotary_factor", 1.0, written=False),
)
"""What no family here has, unless its own rows say so."""
INV_FREQ = "model.layers.{layer}.self_attn.rotary_emb.inv_freq"

LATENT_ATTENTION = (
    WeightRow(
        "{block}input_layernorm.weight",
        (LAYER + "input_layernorm.weight",),
        shape=("hidden_size",),
        stands="layers",
    ),
    WeightRow(
        "{block}self_attention.linear_q_proj.weight",
        (LAYER + "self_attn.q_proj.weight",),
        shape=("mla_query_size", "hidden_size"),
        shard_axis=0,
        stands="layers",
        when=(("q_lora_rank", Given.UNSET),),
    ),
    WeightRow(
        "{block}self_attention.linear_q_down_proj.weight",
        (LAYER + "self_attn.q_a_proj.weight",),
        shape=("q_lora_rank", "hidden_size"),
        stands="layers",
        when=(("q_lora_rank", Given.SET),),
    ),
    WeightRow(
        "{block}self_attention.linear_q_up_proj.layer_norm_weight",
        (LAYER + "self_attn.q_a_layernorm.weight",),
        shape=("q_lora_rank",),
        stands="layers",
        when=(("q_lora_rank", Given.SET),),
    ),
    WeightRow(
        "{block}self_attention.linear_q_up_proj.weight",
        (LAYER + "self_attn.q_b_proj.weight",),
        shape=("mla_query_size", "q_lora_rank"),
        shard_axis=0,
        stands="layers",
        when=(("q_lora_rank", Given.SET),),
    ),
    WeightRow(
        "{block}self_attention.linear_kv_down_proj.weight",
        (LAYER + "self_attn.kv_a_proj_with_mqa.weight",),
        shape=("mla_kv_down_size", "hidden_size"),
        stands="layers",
    ),
    WeightRow(
        "{block}self_attention.linear_kv_up_proj.layer_norm_weight",
        (LAYER + "self_attn.kv_a_layernorm.weight",),
        shape=("kv_lora_rank",),
        stands="layers",
    ),
    WeightRow(
        "{block}self_attention.linear_kv_up_proj.weight",
        (LAYER + "self_attn.kv_b_proj.weight",),
        shape=("mla_kv_up_size", "kv_lora_rank"),
        shard_axis=0,
        stands="layers",
    ),
    WeightRow(
        "{block}self_attention.linear_proj.weight",
        (LAYER + "self_attn.o_proj.weight",),
        shape=("hidden_size", "mla_value_size"),
        shard_axis=1,
        stands="layers",
    ),
)
"""Multi-head latent attention. With Transformer Engine every rank holds the whole down-projections. Both sides rotate
neighbouring channels, so no channel moves."""

SHARED_GATE_UP = WeightRow(
    "{block}mlp.shared_experts.linear_fc1.weight",
    (LAYER + "mlp.shared_experts.gate_proj.weight", LAYER + "mlp.shared_experts.up_proj.weight"),
    shape=("shared_gate_up_size", "hidden_size"),
    op="gate_up",
    shard_axis=0,
    stands="experts",
)
SHARED_DOWN = WeightRow(
    "{block}mlp.shared_experts.linear_fc2.weight",
    (LAYER + "mlp.shared_experts.down_proj.weight",),
    shape=("hidden_size", "moe_shared_expert_intermediate_size"),
    shard_axis=1,
    stands="experts",
)
SHARED_EXPERTS = (SHARED_GATE_UP, SHARED_DOWN)
"""Experts for every token, as DeepSeek names them."""
EXPERT_BIAS = WeightRow(
    "{block}mlp.router.expert_bias",
    (LAYER + "mlp.gate.e_score_correction_bias",),
    shape=("num_moe_experts",),
    stands="experts",
)
MTP = (
    WeightRow("mtp.layers.{mtp}.enorm.weight", (LAYER + "enorm.weight",), shape=("hidden_size",), stands="mtp"),
    WeightRow("mtp.layers.{mtp}.hnorm.weight", (LAYER + "hnorm.weight",), shape=("hidden_size",), stands="mtp"),
    WeightRow(
        "mtp.layers.{mtp}.eh_proj.weight",
        (LAYER + "eh_proj.weight",),
        shape=("hidden_size", "twice_hidden_size"),
        shard_axis=0,
        stands="mtp",
    ),
    WeightRow(
        "mtp.layers.{mtp}.final_layernorm.weight",
        (LAYER + "shared_head.norm.weight",),
        shape=("hidden_size",),
        stands="mtp",
    ),
)
"""What a module of multi-token prediction has beside its layer, as DeepSeek-V3 names it."""
MTP_COPIES = (
    CopyRow(LAYER + "embed_tokens.weight", "model.embed_tokens.weight"),
    CopyRow(LAYER + "shared_head.head.weight", "lm_head.weight"),
)
"""The modules share the model's embedding and output layer; DeepSeek-V3's files hold them again for each."""

LATENT_SIZES = (
    ConfigRow("q_lora_rank", ("q_lora_rank",)),
    ConfigRow("kv_lora_rank", ("kv_lora_rank",), default=512),
    ConfigRow("qk_head_dim", ("qk_nope_head_dim",), default=128),
    ConfigRow("qk_pos_emb_head_dim", ("qk_rope_head_dim",), default=64),
    ConfigRow("v_head_dim", ("v_head_dim",), default=128),
    ConfigRow("num_query_groups", ("num_key_value_heads",), op="every_head"),
)
"""Sizes of multi-head latent attention."""
LATENT_ROPE_SCALING = ConfigRow("rope_scaling", ("rope_scaling", "rope_parameters"), op="latent_rope_scaling")
EXPERT_WIDTH = ConfigRow("moe_ffn_hidden_size", ("moe_intermediate_size",), op="expert_width")
DENSE_FIRST = ConfigRow("moe_layer_freq", ("first_k_dense_replace",), op="dense_first")
SPARSE_STEP = ConfigRow("moe_layer_freq", ("decoder_sparse_step", "mlp_only_layers"), op="sparse_step")
SHARED_WIDTH = ConfigRow(
    "moe_shared_expert_intermediate_size", ("n_shared_experts", "moe_intermediate_size"), op="shared_size"
)
MTP_LAYERS = ConfigRow("mtp_num_layers", ("num_nextn_predict_layers",), op="none_is_zero")
NOT_NORMALISED = ConfigRow("moe_router_pre_softmax", ("norm_topk_prob",), default=True, op="not")
"""Scores of a softmax over all experts, or over the chosen ones, which is the same as making their sum one."""

BIASED = (("add_bias_linear", True),)
LINEAR_BIASES = (
    replace(QKV_BIAS, when=BIASED),
    WeightRow(
        "{block}self_attention.linear_proj.bias",
        (LAYER + "self_attn.o_proj.bias",),
        shape=("hidden_size",),
        stands="layers",
        when=BIASED,
    ),
    WeightRow(
        "{block}mlp.linear_fc1.bias",
        (LAYER + "mlp.gate_proj.bias", LAYER + "mlp.up_proj.bias"),
        shape=("gate_up_size",),
        op="gate_up",
        shard_axis=0,
        stands="dense",
        when=BIASED,
    ),
    WeightRow(
        "{block}mlp.linear_fc2.bias",
        (LAYER + "mlp.down_proj.bias",),
        shape=("hidden_size",),
        stands="dense",
        when=BIASED,
    ),
)
"""Biases of attention and MLP, where all linear layers have them."""

NO_SCALING = (
    FixedRow("rope_parameters.rope_type", "default"),
    FixedRow("rope_scaling", None),
)
"""A rotary embedding that is not stretched."""
NO_SCALING_READ = tuple(replace(row, written=False) for row in NO_SCALING)
"""The same for a class that has no such keys."""
UNQUANTIZED = PLAIN[0]
QWEN_WINDOW = (
    ConfigRow("window_size", ("use_sliding_window", "sliding_window"), op="qwen_window"),
    ConfigRow("window_attn_skip_freq", ("layer_types", "max_window_layers"), op="windowed_layers"),
)
"""A window that a switch turns on, from some layer on."""


def with_defaults(rows: tuple[ConfigRow, ...], **defaults: Any) -> tuple[ConfigRow, ...]:
    """The rows with what a family's config class in transformers assumes where config.json lacks a key of ours."""
    assert defaults.keys() <= {row.ours for row in rows}
    return tuple(replace(row, default=defaults.get(row.ours, row.default)) for row in rows)
