"""The bijective ops between a megatron tensor and its Hugging Face tensors, each beside its inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from megatron_lm_zh.convert.sizes import Sizes


@dataclass(frozen=True)
class Op:
    """One op and its inverse, pure and keeping the dtype; shapes are planned by `to_hf` of tensors without data."""

    to_hf: Callable[[Tensor, Sizes], tuple[Tensor, ...]]
    blocks: Callable[[tuple[Tensor, ...], Sizes], Sequence[Tensor]]
    """The megatron tensor as blocks of rows that follow one another: views, where rows only change places."""

    def to_megatron(self, tensors: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
        """The megatron tensor; that of one block is the block itself."""
        blocks = self.blocks(tensors, sizes)
        return blocks[0] if len(blocks) == 1 else torch.cat(tuple(blocks))


def _same_to_hf(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    return (tensor,)


def _as_they_are(tensors: tuple[Tensor, ...], sizes: Sizes) -> Sequence[Tensor]:
    """One tensor, or several whose rows follow one another: gate [f, h], up [f, h] -> [2f, h]."""
    return tensors


def _split_gate_up(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[2f, h] -> gate [f, h], up [f, h]."""
    gate, up = tensor.chunk(2)
    return gate, up


def _split_qkv(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[(n + 2g) d, ...] in groups of n/g query heads, one key head, one value head -> q [n d, ...], k, v [g d, ...]."""
    groups, channels = sizes.model.num_query_groups, sizes.model.kv_channels
    heads = sizes.model.num_attention_heads // groups
    grouped = tensor.unflatten(0, (groups, heads + 2, channels))
    parts = grouped.split((heads, 1, 1), dim=1)
    return tuple(part.flatten(0, 2) for part in parts)


def _join_qkv(tensors: tuple[Tensor, ...], sizes: Sizes) -> Sequence[Tensor]:
    """q [n d, ...], k, v [g d, ...] -> [(n + 2g) d, ...], grouped as above."""
    groups = zip(*(tensor.tensor_split(sizes.model.num_query_groups) for tensor in tensors), strict=True)
    return [block for group in groups for block in group]


def _split_packed_qkv(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[(n + 2g) d, ...] in groups -> the same rows as all of q, then k, then v."""
    return (torch.cat(_split_qkv(tensor, sizes)),)


def _join_packed_qkv(tensors: tuple[Tensor, ...], sizes: Sizes) -> Sequence[Tensor]:
    """q, k and v in one [(n + 2g) d, ...] -> the same rows in groups."""
    (packed,) = tensors
    rows = sizes.model.num_query_groups * sizes.model.kv_channels
    return _join_qkv(packed.split((packed.shape[0] - 2 * rows, rows, rows)), sizes)


def _split_packed_qkv_t(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[(n + 2g) d, h] in groups -> [h, (n + 2g) d]: q, then k, then v."""
    (packed,) = _split_packed_qkv(tensor, sizes)
    return (packed.t(),)


def _join_packed_qkv_t(tensors: tuple[Tensor, ...], sizes: Sizes) -> Sequence[Tensor]:
    """[h, (n + 2g) d]: q, then k, then v -> [(n + 2g) d, h] in groups."""
    (packed,) = tensors
    return _join_packed_qkv((packed.t(),), sizes)


def _transpose_to_hf(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[out, in] -> [in, out], as GPT-2's Conv1D has it."""
    return (tensor.t(),)


def _transpose_to_megatron(tensors: tuple[Tensor, ...], sizes: Sizes) -> Sequence[Tensor]:
    """[in, out] -> [out, in]."""
    (tensor,) = tensors
    return (tensor.t(),)


def _split_neighbours_qkv(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """The same as `_split_qkv`, and of q and k the channels that one angle turns become neighbours."""
    query, key, value = _split_qkv(tensor, sizes)
    return _by_head(query, sizes, _as_neighbours), _by_head(key, sizes, _as_neighbours), value


def _join_neighbours_qkv(tensors: tuple[Tensor, ...], sizes: Sizes) -> Sequence[Tensor]:
    """q, k, v whose rotary embedding turns neighbours -> [(n + 2g) d, ...], where it turns i with i + r/2."""
    query, key, value = tensors
    return _join_qkv((_by_head(query, sizes, _as_halves), _by_head(key, sizes, _as_halves), value), sizes)


def _by_head(tensor: Tensor, sizes: Sizes, order: Callable[[Tensor], Tensor]) -> Tensor:
    """[n d, ...] with the rotated ones of each head's channels, which are the first r, in another order."""
    channels = sizes.model.kv_channels
    rotated = int(channels * sizes.model.rotary_percent)
    heads = tensor.unflatten(0, (-1, channels))
    return torch.cat((order(heads[:, :rotated]), heads[:, rotated:]), dim=1).flatten(0, 1)


def _as_neighbours(channels: Tensor) -> Tensor:
    """[n, r, ...]: 0, r/2, 1, r/2 + 1, ..."""
    return channels.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _as_halves(channels: Tensor) -> Tensor:
    """[n, r, ...]: 0, 2, 4, ..., 1, 3, 5, ..."""
    return channels.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _trim_vocab(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[padded_vocab, h] -> [vocab, h]."""
    return (tensor[: sizes.vocab_size],)


def _pad_vocab(tensors: tuple[Tensor, ...], sizes: Sizes) -> Sequence[Tensor]:
    """[vocab, h] -> [padded_vocab, h]; the rows of ids that no text has are zero."""
    (tensor,) = tensors
    padding = tensor.new_zeros(sizes.padded_vocab_size - tensor.shape[0], *tensor.shape[1:])
    return tensor, padding


OPS: Mapping[str, Op] = MappingProxyType(
    {
        "identity": Op(_same_to_hf, _as_they_are),
        "gate_up": Op(_split_gate_up, _as_they_are),
        "grouped_qkv": Op(_split_qkv, _join_qkv),
        "packed_qkv": Op(_split_packed_qkv, _join_packed_qkv),
        "packed_qkv_transposed": Op(_split_packed_qkv_t, _join_packed_qkv_t),
        "neighbours_qkv": Op(_split_neighbours_qkv, _join_neighbours_qkv),
        "transposed": Op(_transpose_to_hf, _transpose_to_megatron),
        "padded_vocab": Op(_trim_vocab, _pad_vocab),
    }
)
