"""Every op undoes itself bit for bit, and the grouped layout is the one that megatron-core reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.ops import OPS
from megatron_lm_zh.convert.sizes import Sizes

MODEL = Model(
    num_layers=1,
    hidden_size=24,
    ffn_hidden_size=40,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=4,
    rotary_percent=0.5,
    seq_length=1,
    make_vocab_size_divisible_by=128,
)
SIZES = Sizes(MODEL, vocab_size=131)
HF_SHAPES = {
    "identity": ((24, 24),),
    "gate_up": ((40, 24), (40, 24)),
    "grouped_qkv": ((24, 24), (8, 24), (8, 24)),
    "packed_qkv": ((40, 24),),
    "packed_qkv_transposed": ((24, 40),),
    "neighbours_qkv": ((24, 24), (8, 24), (8, 24)),
    "transposed": ((24, 50),),
    "padded_vocab": ((131, 24),),
}
MEGATRON_ROWS = {
    "identity": 24,
    "gate_up": 80,
    "grouped_qkv": 40,
    "packed_qkv": 40,
    "packed_qkv_transposed": 40,
    "neighbours_qkv": 40,
    "transposed": 50,
    "padded_vocab": 256,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(OPS))
def test_an_op_undoes_itself(name: str, dtype: torch.dtype) -> None:
    op = OPS[name]
    hf = tuple(torch.randn(shape).to(dtype) for shape in HF_SHAPES[name])
    megatron = op.to_megatron(hf, SIZES)
    assert megatron.shape == (MEGATRON_ROWS[name], 24) and megatron.dtype == dtype
    back = op.to_hf(megatron, SIZES)
    assert [tensor.shape for tensor in back] == [tensor.shape for tensor in hf]
    assert all(torch.equal(one, two) for one, two in zip(back, hf, strict=True))
    if name != "padded_vocab":  # its padding is zeros again, whatever it was
        assert torch.equal(op.to_megatron(back, SIZES), megatron)


def test_every_op_is_tested() -> None:
    assert set(OPS) == set(HF_SHAPES)


def test_padding_is_zero() -> None:
    padded = OPS["padded_vocab"].to_megatron((torch.randn(131, 24),), SIZES)
    assert padded[131:].count_nonzero() == 0


def test_qkv_is_grouped_by_key_head() -> None:
    query = torch.arange(24.0).unsqueeze(1)
    key = 100 + torch.arange(8.0).unsqueeze(1)
    value = 200 + torch.arange(8.0).unsqueeze(1)
    fused = OPS["grouped_qkv"].to_megatron((query, key, value), SIZES).flatten().tolist()
    first = [*range(12), *range(100, 104), *range(200, 204)]
    second = [*range(12, 24), *range(104, 108), *range(204, 208)]
    assert fused == first + second


def test_packed_qkv_is_all_queries_then_all_keys_then_all_values() -> None:
    query = torch.arange(24.0).unsqueeze(1)
    key = 100 + torch.arange(8.0).unsqueeze(1)
    value = 200 + torch.arange(8.0).unsqueeze(1)
    grouped = OPS["grouped_qkv"].to_megatron((query, key, value), SIZES)
    packed = torch.cat((query, key, value))
    assert torch.equal(OPS["packed_qkv"].to_megatron((packed,), SIZES), grouped)
    assert torch.equal(OPS["packed_qkv_transposed"].to_megatron((packed.t(),), SIZES), grouped)


def test_rotated_neighbours_go_to_the_two_halves_of_the_rotated_channels() -> None:
    assert (MODEL.kv_channels, MODEL.rotary_percent) == (4, 0.5)  # two channels of four: their order stays
    wide = Sizes(dataclasses.replace(MODEL, kv_channels=8, rotary_percent=0.75), vocab_size=131)
    query = torch.arange(48.0)
    fused = OPS["neighbours_qkv"].to_megatron((query, torch.zeros(16), 100 + torch.arange(16.0)), wide)
    assert fused[:16].tolist() == [0, 2, 4, 1, 3, 5, 6, 7, 8, 10, 12, 9, 11, 13, 14, 15]
    assert fused[32:40].tolist() == [100 + channel for channel in range(8)]  # values are not rotated
