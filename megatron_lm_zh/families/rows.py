"""Rows that many families share: tables are put together from them, and from rows of the family's own."""

from __future__ import annotations

from megatron_lm_zh.families.base import ConfigRow, FixedRow, WeightRow

LAYER = "model.layers.{layer}."
UNTIED = ("tie_embeddings", False)

EMBEDDINGS = (
    WeightRow(
        "embedding.word_embeddings.weight",
        ("model.embed_tokens.weight",),
        shape=("padded_vocab_size", "hidden_size"),
        op="padded_vocab",
        shard_axis=0,
    ),
    WeightRow("decoder.final_layernorm.weight", ("model.norm.weight",), shape=("hidden_size",)),
    WeightRow(
        "output_layer.weight",
        ("lm_head.weight",),
        shape=("padded_vocab_size", "hidden_size"),
        op="padded_vocab",
        shard_axis=0,
        when=(UNTIED,),
    ),
)
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

GATED_MLP = (
    WeightRow(
        "{block}mlp.linear_fc1.layer_norm_weight",
        (LAYER + "post_attention_layernorm.weight",),
        shape=("hidden_size",),
        stands="dense",
    ),
    WeightRow(
        "{block}mlp.linear_fc1.weight",
        (LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
        shape=("gate_up_size", "hidden_size"),
        op="gate_up",
        shard_axis=0,
        stands="dense",
    ),
    WeightRow(
        "{block}mlp.linear_fc2.weight",
        (LAYER + "mlp.down_proj.weight",),
        shape=("hidden_size", "ffn_hidden_size"),
        shard_axis=1,
        stands="dense",
    ),
)
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
EXPERTS = (
    EXPERTS_NORM,
    ROUTER,
    WeightRow(
        "{block}mlp.experts.experts.linear_fc1.weight",
        (LAYER + "mlp.experts.{expert}.gate_proj.weight", LAYER + "mlp.experts.{expert}.up_proj.weight"),
        shape=("expert_gate_up_size", "hidden_size"),
        op="gate_up",
        shard_axis=0,
        stands="experts",
    ),
    WeightRow(
        "{block}mlp.experts.experts.linear_fc2.weight",
        (LAYER + "mlp.experts.{expert}.down_proj.weight",),
        shape=("hidden_size", "moe_ffn_hidden_size"),
        shard_axis=1,
        stands="experts",
    ),
)
"""A mixture of experts as Qwen and DeepSeek name it."""

SHAPE = (
    ConfigRow("num_layers", ("num_hidden_layers",)),
    ConfigRow("hidden_size", ("hidden_size",)),
    ConfigRow("num_attention_heads", ("num_attention_heads",)),
    ConfigRow("num_query_groups", ("num_key_value_heads",)),
    ConfigRow("kv_channels", ("head_dim",)),
    ConfigRow("ffn_hidden_size", ("intermediate_size",)),
    ConfigRow("vocab_size", ("vocab_size",)),
    ConfigRow("layernorm_epsilon", ("rms_norm_eps",), default=1e-6),
    ConfigRow("init_method_std", ("initializer_range",), default=0.02),
    ConfigRow("attention_dropout", ("attention_dropout",), default=0.0),
)
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
