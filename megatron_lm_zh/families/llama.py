"""The Llama family (Llama, Llama 2, Yi and models like them): RoPE, grouped queries, SwiGLU, RMSNorm, no biases."""

from __future__ import annotations

from megatron_lm_zh.families.base import ConfigRow, Family, FixedRow, HuggingFace, WeightRow

_MEGATRON = "decoder.layers.{layer}."
_HF = "model.layers.{layer}."

LLAMA = Family(
    name="llama",
    about="Llama, Llama 2 and 3, Yi",
    varies=("rope_scaling",),
    huggingface=HuggingFace(
        model_type="llama",
        architecture="LlamaForCausalLM",
        weights=(
            WeightRow(
                "embedding.word_embeddings.weight",
                ("model.embed_tokens.weight",),
                op="padded_vocab",
                shape=("padded_vocab_size", "hidden_size"),
                shard_axis=0,
            ),
            WeightRow(
                _MEGATRON + "self_attention.linear_qkv.layer_norm_weight",
                (_HF + "input_layernorm.weight",),
                op="identity",
                shape=("hidden_size",),
                shard_axis=None,
            ),
            WeightRow(
                _MEGATRON + "self_attention.linear_qkv.weight",
                (_HF + "self_attn.q_proj.weight", _HF + "self_attn.k_proj.weight", _HF + "self_attn.v_proj.weight"),
                op="grouped_qkv",
                shape=("qkv_size", "hidden_size"),
                shard_axis=0,
            ),
            WeightRow(
                _MEGATRON + "self_attention.linear_proj.weight",
                (_HF + "self_attn.o_proj.weight",),
                op="identity",
                shape=("hidden_size", "query_size"),
                shard_axis=1,
            ),
            WeightRow(
                _MEGATRON + "mlp.linear_fc1.layer_norm_weight",
                (_HF + "post_attention_layernorm.weight",),
                op="identity",
                shape=("hidden_size",),
                shard_axis=None,
            ),
            WeightRow(
                _MEGATRON + "mlp.linear_fc1.weight",
                (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"),
                op="gate_up",
                shape=("gate_up_size", "hidden_size"),
                shard_axis=0,
            ),
            WeightRow(
                _MEGATRON + "mlp.linear_fc2.weight",
                (_HF + "mlp.down_proj.weight",),
                op="identity",
                shape=("hidden_size", "ffn_hidden_size"),
                shard_axis=1,
            ),
            WeightRow(
                "decoder.final_layernorm.weight",
                ("model.norm.weight",),
                op="identity",
                shape=("hidden_size",),
                shard_axis=None,
            ),
            WeightRow(
                "output_layer.weight",
                ("lm_head.weight",),
                op="padded_vocab",
                shape=("padded_vocab_size", "hidden_size"),
                shard_axis=0,
                when=("tie_embeddings", False),
            ),
        ),
        config=(
            ConfigRow("num_layers", ("num_hidden_layers",)),
            ConfigRow("hidden_size", ("hidden_size",)),
            ConfigRow("num_attention_heads", ("num_attention_heads",)),
            ConfigRow("num_query_groups", ("num_key_value_heads",)),
            ConfigRow("kv_channels", ("head_dim",)),
            ConfigRow("ffn_hidden_size", ("intermediate_size",)),
            ConfigRow("vocab_size", ("vocab_size",)),
            ConfigRow("max_position_embeddings", ("max_position_embeddings",), default=2048),
            ConfigRow("tie_embeddings", ("tie_word_embeddings",), default=False),
            # transformers 4 reads the first, transformers 5 writes and reads the second
            ConfigRow("rotary_base", ("rope_theta", "rope_parameters.rope_theta"), default=10000),
            ConfigRow("layernorm_epsilon", ("rms_norm_eps",), default=1e-6),
            ConfigRow("init_method_std", ("initializer_range",), default=0.02),
            ConfigRow("attention_dropout", ("attention_dropout",), default=0.0),
        ),
        fixed=(
            FixedRow("hidden_act", "silu"),
            FixedRow("attention_bias", False),
            FixedRow("mlp_bias", False),
            FixedRow("rope_parameters.rope_type", "default"),
            FixedRow("rope_parameters.partial_rotary_factor", 1.0, written=False),
            FixedRow("partial_rotary_factor", 1.0, written=False),
            FixedRow("rope_scaling", None, written=False),
            FixedRow("quantization_config", None, written=False),
        ),
        hf_ignored=("model.layers.{layer}.self_attn.rotary_emb.inv_freq",),
    ),
)
