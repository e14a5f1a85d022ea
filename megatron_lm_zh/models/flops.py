"""Counts of parameters and FLOPs, in closed form from the config."""

from __future__ import annotations

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.models.build import padded_vocab_size


def parameters(config: Config) -> int:
    """Parameters of the whole model, padded rows of the embedding included."""
    model = config.model
    embedding = padded_vocab_size(config) * model.hidden_size
    norms = (2 * model.num_layers + 1) * model.hidden_size
    return embedding * (1 if model.tie_embeddings else 2) + model.num_layers * _layer_matrices(config) + norms


def flops_per_token(config: Config) -> float:
    """FLOPs of forward and backward for one token.

    Each weight of a matrix multiplication counts 6 (2 forward, 4 backward), the output layer included; attention counts
    the causal half of its s x s scores and nothing for recomputation. Some published figures count the whole square.
    """
    model = config.model
    matrices = model.num_layers * _layer_matrices(config) + padded_vocab_size(config) * model.hidden_size
    # Scores and weighted values: 2 products x 2 FLOPs x s/2 positions, three times for forward and backward.
    attention = model.num_layers * 6 * model.seq_length * model.num_attention_heads * model.kv_channels
    return 6.0 * matrices + attention


def _layer_matrices(config: Config) -> int:
    """Weights of the matrices of one layer: q, k, v, output projection, gate, up and down."""
    model = config.model
    queries = model.num_attention_heads * model.kv_channels
    keys_and_values = 2 * model.num_query_groups * model.kv_channels
    attention = model.hidden_size * (queries + keys_and_values) + queries * model.hidden_size
    return attention + 3 * model.hidden_size * model.ffn_hidden_size
