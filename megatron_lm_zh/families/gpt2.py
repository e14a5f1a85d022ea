"""The GPT-2 family: learned positions, LayerNorm, GELU and biases everywhere (Radford et al. 2019)."""

from __future__ import annotations

from megatron_lm_zh.families import rows
from megatron_lm_zh.families.base import ConfigRow, Family, FixedRow, HuggingFace, WeightRow

_LAYER = "transformer.h.{layer}."

GPT2 = Family(
    name="gpt2",
    about="GPT-2 and models like it, from 124M to 1.5B",
    architecture={
        "activation": "gelu_tanh",
        "normalization": "LayerNorm",
        "add_bias_linear": True,
        "position_embedding_type": "learned_absolute",
    },
    huggingface=HuggingFace(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        prefix="transformer.",
        weights=(
            WeightRow(
                "embedding.word_embeddings.weight",
                ("transformer.wte.weight",),
                shape=("padded_vocab_size", "hidden_size"),
                op="padded_vocab",
                shard_axis=0,
            ),
            WeightRow(
                "embedding.position_embeddings.weight",
                ("transformer.wpe.weight",),
                shape=("max_position_embeddings", "hidden_size"),
            ),
            WeightRow("decoder.final_layernorm.weight", ("transformer.ln_f.weight",), shape=("hidden_size",)),
            WeightRow("decoder.final_layernorm.bias", ("transformer.ln_f.bias",), shape=("hidden_size",)),
            rows.OUTPUT_LAYER,
            WeightRow(
                "{block}self_attention.linear_qkv.layer_norm_weight",
                (_LAYER + "ln_1.weight",),
                shape=("hidden_size",),
                stands="layers",
            ),
            WeightRow(
                "{block}self_attention.linear_qkv.layer_norm_bias",
                (_LAYER + "ln_1.bias",),
                shape=("hidden_size",),
                stands="layers",
            ),
            WeightRow(
                "{block}self_attention.linear_qkv.weight",
                (_LAYER + "attn.c_attn.weight",),
                shape=("qkv_size", "hidden_size"),
                op="packed_qkv_transposed",
                shard_axis=0,
                stands="layers",
            ),
            WeightRow(
                "{block}self_attention.linear_qkv.bias",
                (_LAYER + "attn.c_attn.bias",),
                shape=("qkv_size",),
                op="packed_qkv",
                shard_axis=0,
                stands="layers",
            ),
            WeightRow(
                "{block}self_attention.linear_proj.weight",
                (_LAYER + "attn.c_proj.weight",),
                shape=("hidden_size", "query_size"),
                op="transposed",
                shard_axis=1,
                stands="layers",
            ),
            WeightRow(
                "{block}self_attention.linear_proj.bias",
                (_LAYER + "attn.c_proj.bias",),
                shape=("hidden_size",),
                stands="layers",
            ),
            WeightRow(
                "{block}mlp.linear_fc1.layer_norm_weight",
                (_LAYER + "ln_2.weight",),
                shape=("hidden_size",),
                stands="dense",
            ),
            WeightRow(
                "{block}mlp.linear_fc1.layer_norm_bias",
                (_LAYER + "ln_2.bias",),
                shape=("hidden_size",),
                stands="dense",
            ),
            WeightRow(
                "{block}mlp.linear_fc1.weight",
                (_LAYER + "mlp.c_fc.weight",),
                shape=("ffn_hidden_size", "hidden_size"),
                op="transposed",
                shard_axis=0,
                stands="dense",
            ),
            WeightRow(
                "{block}mlp.linear_fc1.bias",
                (_LAYER + "mlp.c_fc.bias",),
                shape=("ffn_hidden_size",),
                shard_axis=0,
                stands="dense",
            ),
            WeightRow(
                "{block}mlp.linear_fc2.weight",
                (_LAYER + "mlp.c_proj.weight",),
                shape=("hidden_size", "ffn_hidden_size"),
                op="transposed",
                shard_axis=1,
                stands="dense",
            ),
            WeightRow(
                "{block}mlp.linear_fc2.bias",
                (_LAYER + "mlp.c_proj.bias",),
                shape=("hidden_size",),
                stands="dense",
            ),
        ),
        config=(
            ConfigRow("num_layers", ("n_layer",)),
            ConfigRow("hidden_size", ("n_embd",)),
            ConfigRow("num_attention_heads", ("n_head",)),
            ConfigRow("num_query_groups", ("num_key_value_heads",), op="no_groups"),
            ConfigRow("kv_channels", ("head_dim",), op="even_heads"),
            ConfigRow("ffn_hidden_size", ("n_inner",), op="fourfold"),
            ConfigRow("vocab_size", ("vocab_size",)),
            ConfigRow("max_position_embeddings", ("n_positions",), default=1024),
            ConfigRow("layernorm_epsilon", ("layer_norm_epsilon",), default=1e-5),
            ConfigRow("init_method_std", ("initializer_range",), default=0.02),
            ConfigRow("attention_dropout", ("attn_pdrop",), default=0.1),
            ConfigRow("hidden_dropout", ("resid_pdrop", "embd_pdrop"), default=0.1),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=True),
        ),
        fixed=(
            FixedRow("activation_function", "gelu_new"),
            FixedRow("scale_attn_weights", True),
            FixedRow("scale_attn_by_inverse_layer_idx", False),
            FixedRow("reorder_and_upcast_attn", False),
            FixedRow("add_cross_attention", False),
            rows.UNQUANTIZED,
        ),
        hf_ignored=(_LAYER + "attn.bias", _LAYER + "attn.masked_bias"),
    ),
)
