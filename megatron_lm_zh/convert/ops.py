"""The bijective ops between a megatron tensor and its Hugging Face tensors, each beside its inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from megatron_lm_zh.convert.sizes import Sizes


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
    gate, up = tensor.chunk(2)
    return gate, up


def _join_gate_up(tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
    """gate [f, h], up [f, h] -> [2f, h]."""
    return torch.cat(tensors)


def _split_qkv(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[(n + 2g) d, ...] in groups of n/g query heads, one key head, one value head -> q [n d, ...], k, v [g d, ...]."""
    groups, channels = sizes.model.num_query_groups, sizes.model.kv_channels
    heads = sizes.model.num_attention_heads // groups
    grouped = tensor.unflatten(0, (groups, heads + 2, channels))
    parts = grouped.split((heads, 1, 1), dim=1)
    return tuple(part.flatten(0, 2) for part in parts)


def _join_qkv(tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
    """q [n d, ...], k, v [g d, ...] -> [(n + 2g) d, ...], grouped as above."""
    groups, channels = sizes.model.num_query_groups, sizes.model.kv_channels
    return torch.cat([part.unflatten(0, (groups, -1, channels)) for part in tensors], dim=1).flatten(0, 2)


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
