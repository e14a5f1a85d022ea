"""The core attention against scores and masks written out, on one rank and on two; the norms against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.pool import RankPool
from torch import Tensor

pytestmark = pytest.mark.dist

HEADS = 6
LENGTH = 24

CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "grouped": {"groups": 2},
    "one-group": {"groups": 1},
    "latent": {"value_width": 5, "scale": 0.3},
    "window": {"window": 5},
    "window-grouped": {"window": 2, "groups": 2},
    "alibi": {"alibi": True},
    "alibi-grouped-latent": {"alibi": True, "groups": 2, "value_width": 3, "scale": 0.7},
    "alibi-window": {"alibi": True, "window": 7},
    "documents": {"bounds": [0, 5, 6, 20, 24]},
    "documents-grouped-latent": {"bounds": [0, 9, 24], "groups": 3, "value_width": 5},
    "documents-window": {"bounds": [0, 13, 24], "window": 3},
    "documents-alibi": {"bounds": [0, 1, 11, 24], "alibi": True},
}
LAYOUTS = {"one-rank": (1, 1), "tp2": (2, 1), "cp2": (1, 2), "tp2-cp2": (2, 2), "cp4": (1, 4)}


def example(
    groups: int = HEADS, value_width: int = 8, bounds: list[int] | None = None, **rest: Any
) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values of all heads and positions, [s, b, n, d], and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    batch = 2 if bounds is None else 1
    shapes = [(LENGTH, batch, HEADS, 8), (LENGTH, batch, groups, 8), (LENGTH, batch, groups, value_width)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    return inputs, torch.randn((LENGTH, batch, HEADS, value_width), generator=generator)


def reference(case: dict[str, Any]) -> list[Tensor]:
    """Output and gradients of queries, keys and values, in fp64 with every score written out."""
    inputs, weights = example(**case)
    query, key, value = (x.double().requires_grad_() for x in inputs)
    repeats = HEADS // key.shape[2]
    scores = torch.einsum("ibnd,jbnd->bnij", query, key.repeat_interleave(repeats, dim=2))
    scores = scores * case.get("scale", 8**-0.5)
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]
    seen = distance >= 0
    if "window" in case:
        seen &= distance <= case["window"]
    if "bounds" in case:
        document = torch.bucketize(torch.arange(LENGTH), torch.tensor(case["bounds"]), right=True)
        seen &= document[:, None] == document[None, :]
    if case.get("alibi"):
        # 6 heads: 4 as for a power of two, and every other one of those for 8.
        slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3], dtype=torch.float64)
        scores = scores - slopes[:, None, None] * distance
    weight = scores.masked_fill(~seen, -math.inf).softmax(-1)
    output = torch.einsum("bnij,jbnd->ibnd", weight, value.repeat_interleave(repeats, dim=2))
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), (query, key, value))]


def attend(ranks: Any, device: Any, layout: tuple[int, int], names: list[str]) -> dict[str, list[Tensor]]:
    """Runs in the pool: what `reference` gives, as far as this rank holds it."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_lm_zh.models import spans

    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=ranks.world)
    parallel_state.initialize_model_parallel(layout[0], context_parallel_size=layout[1])
    rows, spans.WINDOW_ROWS = spans.WINDOW_ROWS, 4
    try:
        return {name: _attend(CASES[name], layout) for name in names}
    finally:
        spans.WINDOW_ROWS = rows
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _attend(case: dict[str, Any], layout: tuple[int, int]) -> list[Tensor]:
    from megatron.core import parallel_state
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.utils import get_batch_on_this_cp_rank

    from megatron_lm_zh import compat
    from megatron_lm_zh.models.attention import AlibiCoreAttention, SdpaCoreAttention
    from megatron_lm_zh.models.documents import packed_documents

    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * 8,
        num_attention_heads=HEADS,
        tensor_model_parallel_size=layout[0],
        context_parallel_size=layout[1],
        attention_dropout=0.0,
        window_size=(case["window"], 0) if "window" in case else None,
    )
    kind = AlibiCoreAttention if case.get("alibi") else SdpaCoreAttention
    attention = kind(config, 1, AttnMaskType.causal, "self", softmax_scale=case.get("scale"), cp_comm_type="all_gather")
    rank, group = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_context_parallel_group()

    def held(x: Tensor) -> Tensor:
        batch = {"x": x.chunk(layout[0], dim=2)[rank].transpose(0, 1).contiguous()}
        return compat.cut_by_sequence(get_batch_on_this_cp_rank)(batch, cp_group=group)["x"].transpose(0, 1)

    inputs, weights = example(**case)
    parts = [held(x).detach().requires_grad_() for x in inputs]
    packed = None
    if "bounds" in case:
        packed = packed_documents(torch.tensor(case["bounds"], dtype=torch.int32), context_parallel=layout[1] > 1)
    given = [part.squeeze(1) for part in parts] if packed else parts
    output = attention(*given, None, attn_mask_type=AttnMaskType.causal, packed_seq_params=packed)
    shape = held(weights).shape
    assert output.shape == ((shape[0],) if packed else shape[:2]) + (shape[2] * shape[3],)
    output = output.reshape(shape)
    return [output.detach(), *torch.autograd.grad((output * held(weights)).sum(), parts)]


def assembled(answers: list[list[Tensor]], layout: tuple[int, int]) -> list[Tensor]:
    """What the ranks returned, in the order of positions and heads; tensor-parallel ranks are neighbours."""
    tensor, context = layout
    size = LENGTH // (2 * context)
    found = []
    for parts in zip(*answers, strict=True):
        rows = [torch.cat(parts[place * tensor : (place + 1) * tensor], dim=2) for place in range(context)]
        first, second = zip(*(row.split(size) for row in rows), strict=True)
        found.append(torch.cat((*first, *reversed(second))))
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_is_that_of_its_scores_written_out(name: str, ranks: RankPool) -> None:
    layout = LAYOUTS[name]
    cases = [case for case, options in CASES.items() if options.get("groups", HEADS) % layout[0] == 0]
    answers = ranks.run(layout[0] * layout[1], attend, layout, cases)
    for case in cases:
        found = assembled([answer[case] for answer in answers], layout)
        for what, ours, theirs in zip("oqkv", found, reference(CASES[case]), strict=True):
            torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5, msg=f"{case}: {what}")


def test_slopes_of_alibi() -> None:
    from megatron_lm_zh.models.alibi import slopes

    assert slopes(1) == [2**-8]
    assert slopes(8) == [2**-exponent for exponent in range(1, 9)]
    assert slopes(12) == slopes(8) + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_alibi_is_exact_far_from_the_end(dtype: torch.dtype) -> None:
    from megatron_lm_zh.models.alibi import slopes, with_alibi

    length, scale = 3000, 1 / 9
    query, key = torch.zeros(1, 6, 2, 8, dtype=dtype), torch.zeros(1, 2, length, 8, dtype=dtype)
    wanted = torch.tensor(slopes(6))
    query, key = with_alibi(query, key, wanted, scale)
    bias = scale * torch.einsum("bnid,bnjd->bnij", query.double(), key.repeat_interleave(3, dim=1).double())
    expected = wanted.double()[:, None] * (torch.arange(length) - (length - 1))
    torch.testing.assert_close(bias[0, :, 0], expected, atol=1e-6, rtol=2e-5)


def dropout(ranks: Any, device: Any) -> list[bool]:
    """Runs in the pool: whether a dropout of 0.5 acts in training and on each tensor-parallel rank in another way."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_lm_zh.models.attention import SdpaCoreAttention
    from megatron_lm_zh.runtime import generators

    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=2)
    parallel_state.initialize_model_parallel(2)
    try:
        generators.seed(0)
        config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4, tensor_model_parallel_size=2)
        attention = SdpaCoreAttention(config, 1, AttnMaskType.causal, "self", attention_dropout=0.5)
        inputs = [torch.ones(9, 2, 2, 8)] * 3
        first, second = attention(*inputs, None), attention(*inputs, None)
        both = [torch.empty_like(first) for _ in range(2)]
        dist.all_gather(both, first.contiguous())
        evaluated = attention.eval()(*inputs, None)
        return [torch.equal(first, second), torch.equal(*both), torch.allclose(evaluated, torch.ones(9, 2, 16))]
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def test_dropout_differs_from_head_to_head_and_is_for_training(ranks: RankPool) -> None:
    assert ranks.run(2, dropout) == [[False, False, True]] * 2


def norm_differences(ranks: Any, device: Any, normalization: str, zero_centred: bool) -> tuple[float, Any, bool]:
    """Runs in the pool."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_lm_zh.models.norm import NORMS

    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        tensor_model_parallel_size=2,
        sequence_parallel=True,
        params_dtype=torch.bfloat16,
        bf16=True,
        layernorm_zero_centered_gamma=zero_centred,
    )
    norm = NORMS[normalization](config=config, hidden_size=8, eps=0.25)
    x = torch.randn(5, 2, 8, dtype=torch.bfloat16)
    wide = x.double()
    if normalization == "LayerNorm":
        wide = wide - wide.mean(-1, keepdim=True)
    expected = wide / (wide.square().mean(-1, keepdim=True) + 0.25).sqrt()
    untouched = float((norm(x).double() - expected).abs().max())
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    expected = expected * (norm.weight.double() + zero_centred)
    if normalization == "LayerNorm":
        expected = expected + norm.bias.double()
    marked = all(parameter.sequence_parallel for parameter in norm.parameters())
    return max(untouched, float((norm(x).double() - expected).abs().max())), str(norm.weight.dtype), marked


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("zero_centred", [False, True])
def test_norm_is_its_formula(normalization: str, zero_centred: bool, ranks: RankPool) -> None:
    ((difference, dtype, marked),) = ranks.run(1, norm_differences, normalization, zero_centred)
    assert difference < 0.05 and dtype == "torch.bfloat16" and marked
