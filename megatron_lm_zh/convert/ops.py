"""The bijective ops between a megatron tensor and its Hugging Face tensors, each beside its inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from megatron_lm_zh.config.schema import Model


@dataclass(frozen=True)
class Sizes:
    """The sizes of one model that ops and shapes are written in."""

    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    """Rows of the Hugging Face embedding: the true vocabulary."""
    padded_vocab_size: int
    """Rows of the megatron embedding."""

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.kv_channels

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_attention_heads + 2 * self.num_query_groups) * self.kv_channels

    @property
    def gate_up_size(self) -> int:
        """Rows of the fused gate and up projection."""
        return 2 * self.ffn_hidden_size

    @classmethod
    def of(cls, model: Model, vocab_size: int) -> Sizes:
        """The sizes of a model section whose tokenizer leaves `vocab_size` ids."""
        multiple = model.make_vocab_size_divisible_by
        return cls(
            hidden_size=model.hidden_size,
            ffn_hidden_size=model.ffn_hidden_size,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_query_groups,
            kv_channels=model.kv_channels,
            vocab_size=vocab_size,
            padded_vocab_size=-(-vocab_size // multiple) * multiple,
        )


@dataclass(frozen=True)
class Op:
    """One op and its inverse: pure, keeping the dtype, and able to run on meta tensors, by which shapes are planned."""

    to_hf: Callable[[Tensor, Sizes], tuple[Tensor, ...]]
    to_megatron: Callable[[tuple[Tensor, ...], Sizes], Tensor]


def _same_to_hf(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    return (tensor,)


def _same_to_megatron(tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
    (tensor,) = tensors
    return tensor


def _split_gate_up(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[2f, h] -> gate [f, h], up [f, h]."""
    gate, up = tensor.split(sizes.ffn_hidden_size)
    return gate, up


def _join_gate_up(tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
    """gate [f, h], up [f, h] -> [2f, h]."""
    return torch.cat(tensors)


def _split_qkv(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[(n + 2g) d, ...] in groups of n/g query heads, one key head, one value head -> q [n d, ...], k, v [g d, ...]."""
    heads = sizes.num_attention_heads // sizes.num_query_groups
    grouped = tensor.unflatten(0, (sizes.num_query_groups, heads + 2, sizes.kv_channels))
    parts = grouped.split((heads, 1, 1), dim=1)
    return tuple(part.flatten(0, 2) for part in parts)


def _join_qkv(tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
    """q [n d, ...], k, v [g d, ...] -> [(n + 2g) d, ...], grouped as above."""
    grouped = [part.unflatten(0, (sizes.num_query_groups, -1, sizes.kv_channels)) for part in tensors]
    return torch.cat(grouped, dim=1).flatten(0, 2)


def _trim_vocab(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[padded_vocab, h] -> [vocab, h]."""
    return (tensor[: sizes.vocab_size],)


def _pad_vocab(tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
    """[vocab, h] -> [padded_vocab, h]; the rows of ids that no text has are zero."""
    (tensor,) = tensors
    padding = tensor.new_zeros(sizes.padded_vocab_size - tensor.shape[0], *tensor.shape[1:])
    return torch.cat((tensor, padding))


OPS: Mapping[str, Op] = MappingProxyType(
    {
        "identity": Op(_same_to_hf, _same_to_megatron),
        "gate_up": Op(_split_gate_up, _join_gate_up),
        "grouped_qkv": Op(_split_qkv, _join_qkv),
        "padded_vocab": Op(_trim_vocab, _pad_vocab),
    }
)
