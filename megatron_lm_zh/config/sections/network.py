"""The network's shape: width, depth, attention, positions, norms; the experts come in experts.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT, PositiveInt, of_family
from megatron_lm_zh.config.sections.rope_scaling import RopeScaling


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Network:
    """What one decoder layer is made of, and how many there are."""

    # Field(): a default without it is set after the other keys', which look here for their family's.
    family: Literal[
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "glm4",
        "glm4_0414",
        "baichuan",
        "internlm2",
        "gpt2",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe",
        "gpt",
    ] = Field(default="llama")
    """Model family: which Hugging Face architecture the checkpoint becomes, and so which of these fields may vary.
    `gpt` lets all of them vary and becomes none (see megatron_lm_zh/families)."""
    num_layers: int = PositiveInt
    """Number of transformer layers."""
    hidden_size: int = PositiveInt
    """Width of the residual stream."""
    num_attention_heads: int = PositiveInt
    """Number of query heads."""
    num_query_groups: int = Field(default_factory=lambda model: model["num_attention_heads"], gt=0)
    """Number of key/value heads: 1 is multi-query attention. Default: num_attention_heads."""
    kv_channels: int = Field(default_factory=lambda model: model["hidden_size"] // model["num_attention_heads"], gt=0)
    """Channels of one head. Default: hidden_size / num_attention_heads."""
    ffn_hidden_size: int = Field(default_factory=lambda model: -(-8 * model["hidden_size"] // 3 // 64) * 64, gt=0)
    """Inner width of the MLP. Default: 8/3 hidden_size, rounded up to a multiple of 64."""
    seq_length: int = PositiveInt
    """Tokens in one training sequence."""
    max_position_embeddings: int = Field(default_factory=lambda model: model["seq_length"], gt=0)
    """Longest sequence that the exported model claims to take. Default: seq_length."""
    vocab_size: int | None = Field(default=None, gt=0)
    """Number of token ids. Default: the tokenizer's. May be larger than the tokenizer's, never smaller."""
    make_vocab_size_divisible_by: int = Field(default=128, gt=0)
    """The embedding has vocab_size rows rounded up to a multiple of this, whatever the layout."""
    tie_embeddings: bool = False
    """Whether the output layer shares the word embedding's weight."""
    normalized_output: bool = of_family("normalized_output", False)
    """Whether the rows of the output layer's weight are scaled to length 1 before each use (Baichuan 2's NormHead)."""

    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "squared_relu"] = of_family("activation", "swiglu")
    """Activation of the MLP: `swiglu` and `geglu` are gated (Shazeer 2020), `gelu_tanh` is GPT-2's approximation of
    GELU (Hugging Face's gelu_new), `squared_relu` is from So et al. 2021. megatron-core's `gelu` is that approximation,
    too, where kernels.bias_activation_fusion is on, which it is by default with add_bias_linear."""
    normalization: Literal["RMSNorm", "LayerNorm"] = of_family("normalization", "RMSNorm")
    """Norm before attention, before the MLP and at the end."""
    sandwich_norm: bool = of_family("sandwich_norm", False)
    """A norm behind attention and one behind the MLP, too, before each is added to the residual stream (Sandwich-LN,
    Ding et al. 2021; GLM-4-0414)."""
    layernorm_epsilon: float = Field(default=1e-5, gt=0)
    """Epsilon of the norms."""
    add_bias_linear: bool = of_family("add_bias_linear", False)
    """Biases in all linear layers but the output layer."""
    add_qkv_bias: bool = of_family("add_qkv_bias", False)
    """Biases in the projection to queries, keys and values alone (Qwen2)."""
    qk_layernorm: bool = of_family("qk_layernorm", False)
    """Norm of each head's queries and keys (Dehghani et al. 2023; Qwen3), or of MLA's latents (DeepSeek)."""
    window_size: tuple[int, int] | None = of_family("window_size", None)
    """Sliding-window attention: how many positions to the left and right a token sees, e.g. [4095, 0]."""
    window_attn_skip_freq: int | tuple[int, ...] | None = of_family("window_attn_skip_freq", None)
    """With a window: every n-th layer sees everything, or one 0/1 a layer (1: windowed)."""

    position_embedding_type: Literal["rope", "learned_absolute", "alibi", "none"] = of_family(
        "position_embedding_type", "rope"
    )
    """Rotary (Su et al. 2021), learned, ALiBi's linear biases (Press et al. 2022), or no positions."""
    rotary_base: int = Field(default=10000, gt=0)
    """Base of the rotary position embedding (theta)."""
    rotary_percent: float = of_family("rotary_percent", 1.0, gt=0, le=1)
    """Share of a head's channels that are rotated."""
    rope_scaling: RopeScaling | None = None
    """How the rotary embedding reaches beyond the length it was trained on; one class for each `kind`."""

    multi_latent_attention: bool = of_family("multi_latent_attention", False)
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values come from a narrow latent."""
    q_lora_rank: int | None = Field(default=None, gt=0)
    """MLA: width of the queries' latent; null projects the queries directly."""
    kv_lora_rank: int = Field(default=512, gt=0)
    """MLA: width of the latent of keys and values."""
    qk_head_dim: int = Field(default=128, gt=0)
    """MLA: channels of a head's queries and keys that carry no position."""
    qk_pos_emb_head_dim: int = Field(default=64, gt=0)
    """MLA: channels of a head's queries and keys that are rotated."""
    v_head_dim: int = Field(default=128, gt=0)
    """MLA: channels of a head's values."""

    mtp_num_layers: int | None = Field(default=None, gt=0)
    """Multi-token prediction (DeepSeek-V3, 2024): extra layers that predict the tokens after the next."""
    mtp_loss_scaling_factor: float = Field(default=0.1, ge=0)
    """Weight of the multi-token predictions' mean loss beside the model's own."""

    init_method_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights; residual projections get this / sqrt(2 num_layers)."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the attention probabilities."""
    hidden_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of embeddings and residual branches."""
