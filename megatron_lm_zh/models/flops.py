"""Counts of parameters and FLOPs, in closed form from the config."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lm_zh.config.schema import Config, Model
from megatron_lm_zh.models.build import padded_vocab_size

GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class Size:
    """Parameters of a part of the model, by what they do."""

    matrices: int = 0
    """Weights of the matrix multiplications that every token passes through."""
    idle: int = 0
    """Weights of the experts that a token is not sent to."""
    rest: int = 0
    """Norms, biases, tables that rows are read from."""

    def __add__(self, other: Size) -> Size:
        return Size(self.matrices + other.matrices, self.idle + other.idle, self.rest + other.rest)

    def times(self, count: int) -> Size:
        """This part `count` times."""
        return Size(self.matrices * count, self.idle * count, self.rest * count)


def parameters(config: Config) -> int:
    """Parameters of the whole model, padded rows of the embedding and multi-token prediction layers included."""
    size = _model(config)
    return size.matrices + size.idle + size.rest


def active_parameters(config: Config) -> int:
    """Parameters that a token meets: all but the experts that it is not sent to. Embedding and output layer count."""
    size = _model(config)
    return size.matrices + size.rest


def flops_per_token(config: Config) -> float:
    """FLOPs of forward and backward for one token.

    Each weight of a matrix multiplication counts 6 (2 forward, 4 backward), the output layer included, of the experts
    those that a token is sent to; attention counts the positions that a token sees on average (the causal half of its
    s x s scores, or its window) and nothing for recomputation. Some published figures count the whole square.
    """
    model = config.model
    predictions = 1 + (model.mtp_num_layers or 0)  # each goes through the output layer
    matrices = _layers(model).matrices + predictions * padded_vocab_size(config) * model.hidden_size
    # Scores and weighted values: 2 FLOPs each for a position and a channel, three times for forward and backward.
    attention = sum(6.0 * _positions_seen(model, layer) * _attention_channels(model) for layer in _layer_numbers(model))
    return 6.0 * matrices + attention


def has_experts(model: Model, layer: int) -> bool:
    """Whether a layer, counted from 0, is a mixture of experts; multi-token prediction layers are like the last one."""
    layer = min(layer, model.num_layers - 1)
    if model.num_moe_experts is None:
        return False
    if isinstance(model.moe_layer_freq, int):
        return layer % model.moe_layer_freq == 0
    return bool(model.moe_layer_freq[layer])


def _model(config: Config) -> Size:
    """Everything: embedding and positions, layers, final norm, output layer."""
    model = config.model
    table = padded_vocab_size(config) * model.hidden_size
    learned = model.position_embedding_type == "learned_absolute"
    positions = model.max_position_embeddings * model.hidden_size if learned else 0
    embedding = 0 if model.tie_embeddings else table
    return Size(matrices=table, rest=embedding + positions + _norm(model, model.hidden_size)) + _layers(model)


def _layers(model: Model) -> Size:
    total = Size()
    for layer in _layer_numbers(model):
        total += _attention(model) + (_experts(model) if has_experts(model, layer) else _dense_mlp(model))
        total += Size(rest=(4 if model.sandwich_norm else 2) * _norm(model, model.hidden_size))
    # Multi-token prediction joins embedding and state, each through a norm, and has a final norm of its own.
    joint = Size(matrices=2 * model.hidden_size**2, rest=3 * _norm(model, model.hidden_size))
    return total + joint.times(model.mtp_num_layers or 0)


def _layer_numbers(model: Model) -> range:
    """The decoder's layers, and after them those of multi-token prediction."""
    return range(model.num_layers + (model.mtp_num_layers or 0))


def _attention(model: Model) -> Size:
    hidden, heads = model.hidden_size, model.num_attention_heads
    bias = model.add_bias_linear
    if model.multi_latent_attention:
        return _latent_attention(model) + _linear(heads * model.v_head_dim, hidden, bias)
    queries, keys_and_values = heads * model.kv_channels, 2 * model.num_query_groups * model.kv_channels
    norms = 2 * _norm(model, model.kv_channels) if model.qk_layernorm else 0
    projection = _linear(hidden, queries + keys_and_values, bias or model.add_qkv_bias)
    return projection + _linear(queries, hidden, bias) + Size(rest=norms)


def _latent_attention(model: Model) -> Size:
    """MLA's projections to queries, keys and values, which have no biases, and the norms of the latents."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    queries = heads * (model.qk_head_dim + model.qk_pos_emb_head_dim)
    keys_and_values = heads * (model.qk_head_dim + model.v_head_dim)
    size = _linear(hidden, model.kv_lora_rank + model.qk_pos_emb_head_dim)
    size += _linear(model.kv_lora_rank, keys_and_values)
    if model.q_lora_rank is None:
        size += _linear(hidden, queries)
    else:
        size += _linear(hidden, model.q_lora_rank) + _linear(model.q_lora_rank, queries)
    latents = model.kv_lora_rank + (model.q_lora_rank or 0)
    return size + Size(rest=_norm(model, latents) if model.qk_layernorm else 0)


def _dense_mlp(model: Model) -> Size:
    return _mlp(model, model.ffn_hidden_size)


def _mlp(model: Model, width: int) -> Size:
    up = 2 * width if model.activation in GATED else width
    bias = model.add_bias_linear
    return _linear(model.hidden_size, up, bias) + _linear(width, model.hidden_size, bias)


def _experts(model: Model) -> Size:
    """Router, experts and shared experts of one layer."""
    assert model.num_moe_experts is not None
    expert = _mlp(model, model.moe_ffn_hidden_size or model.ffn_hidden_size)
    whole = expert.matrices + expert.rest
    size = _linear(model.hidden_size, model.num_moe_experts, model.add_bias_linear)
    size += expert.times(model.moe_router_topk)
    size += Size(idle=whole * (model.num_moe_experts - model.moe_router_topk))
    if model.moe_shared_expert_intermediate_size is not None:
        size += _mlp(model, model.moe_shared_expert_intermediate_size)
        size += Size(matrices=model.hidden_size if model.moe_shared_expert_gate else 0)
    return size


def _linear(inputs: int, outputs: int, bias: bool = False) -> Size:
    return Size(matrices=inputs * outputs, rest=outputs if bias else 0)


def _norm(model: Model, width: int) -> int:
    """Parameters of a norm: a weight, and for LayerNorm a bias."""
    return width * (2 if model.normalization == "LayerNorm" else 1)


def _attention_channels(model: Model) -> int:
    """Channels of all heads' queries and values."""
    if model.multi_latent_attention:
        head = model.qk_head_dim + model.qk_pos_emb_head_dim + model.v_head_dim
        return model.num_attention_heads * head
    return model.num_attention_heads * 2 * model.kv_channels


def _positions_seen(model: Model, layer: int) -> float:
    """Positions that a token of a sequence sees in a layer, on average."""
    length = model.seq_length
    window = model.window_size
    if window is None or not _is_windowed(model, layer) or not 0 <= window[0] < length:
        return length / 2
    seen = window[0] + 1
    return seen - seen**2 / (2 * length)


def _is_windowed(model: Model, layer: int) -> bool:
    frequency = model.window_attn_skip_freq
    if frequency is None:
        return True
    if isinstance(frequency, int):
        return (layer + 1) % frequency != 0
    return bool(frequency[min(layer, model.num_layers - 1)])
