"""The named sizes in which tables write shapes."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lm_zh.config.schema import Model


@dataclass(frozen=True)
class Sizes:
    """The sizes of one model."""

    model: Model
    vocab_size: int
    """Rows of the Hugging Face embedding: the true vocabulary."""

    def __getitem__(self, name: str) -> int:
        """A size by the name that a table gives it: one of this class, or a key of the `model` section."""
        value = getattr(self, name) if hasattr(self, name) else getattr(self.model, name)
        assert isinstance(value, int), f"{name} is {value!r}"
        return value

    @property
    def one(self) -> int:
        """Rows of a gate that has one number for a token."""
        return 1

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the megatron embedding."""
        multiple = self.model.make_vocab_size_divisible_by
        return -(-self.vocab_size // multiple) * multiple

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.model.num_attention_heads * self.model.kv_channels

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.model.num_attention_heads + 2 * self.model.num_query_groups) * self.model.kv_channels

    @property
    def gate_up_size(self) -> int:
        """Rows of the fused gate and up projection."""
        return 2 * self.model.ffn_hidden_size

    @property
    def moe_ffn_hidden_size(self) -> int:
        """Inner width of one expert."""
        return self.model.moe_ffn_hidden_size or self.model.ffn_hidden_size

    @property
    def expert_gate_up_size(self) -> int:
        """Rows of an expert's fused gate and up projection."""
        return 2 * self.moe_ffn_hidden_size

    @property
    def shared_gate_up_size(self) -> int:
        """Rows of the shared experts' fused gate and up projection."""
        return 2 * self["moe_shared_expert_intermediate_size"]

    @property
    def twice_hidden_size(self) -> int:
        """Width of what a module of multi-token prediction projects."""
        return 2 * self.model.hidden_size

    @property
    def mla_query_size(self) -> int:
        """MLA: rows of the (up) projection to queries."""
        return self.model.num_attention_heads * (self.model.qk_head_dim + self.model.qk_pos_emb_head_dim)

    @property
    def mla_kv_down_size(self) -> int:
        """MLA: rows of the projection to the latent of keys and values, and the rotated key beside it."""
        return self.model.kv_lora_rank + self.model.qk_pos_emb_head_dim

    @property
    def mla_kv_up_size(self) -> int:
        """MLA: rows of the projection from the latent to keys and values."""
        return self.model.num_attention_heads * (self.model.qk_head_dim + self.model.v_head_dim)

    @property
    def mla_value_size(self) -> int:
        """MLA: columns of the output projection."""
        return self.model.num_attention_heads * self.model.v_head_dim
