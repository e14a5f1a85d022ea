"""The core attention against megatron-core's own, and the norm against its formula."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist


def both_attentions(ranks: Any, device: Any, groups: int, head: int) -> tuple[list[float], list[bool]]:
    """Runs in the pool: largest differences of output and gradients, and whether a dropout of 0.5 acts as it must."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_lm_zh.models.attention import SdpaCoreAttention
    from megatron_lm_zh.runtime import generators

    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    try:
        generators.seed(0)
        s, b, n = 19, 3, 4
        config = TransformerConfig(
            num_layers=1,
            hidden_size=n * head,
            num_attention_heads=n,
            num_query_groups=groups,
            kv_channels=head,
            attention_dropout=0.0,
            masked_softmax_fusion=False,
        )
        arguments = {"layer_number": 1, "attn_mask_type": AttnMaskType.causal, "attention_type": "self"}
        ours, theirs = SdpaCoreAttention(config, **arguments), DotProductAttention(config, **arguments)
        shapes = ((s, b, n, head), (s, b, groups, head), (s, b, groups, head))
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        mask = torch.triu(torch.ones(1, 1, s, s, dtype=torch.bool), diagonal=1)
        weight = torch.randn(s, b, n * head)
        results = []
        for attention in (ours, theirs):
            output = attention(*inputs, mask)
            assert output.shape == (s, b, n * head)
            gradients = torch.autograd.grad((output * weight).sum(), inputs)
            results.append((output.detach(), *gradients))
        differences = [float((a - c).abs().max()) for a, c in zip(*results, strict=True)]

        dropping = SdpaCoreAttention(config, attention_dropout=0.5, **arguments)
        with torch.no_grad():
            first, second = dropping(*inputs, None), dropping(*inputs, None)
            dropping.eval()
            evaluated = dropping(*inputs, None)
        drops = [not torch.equal(first, second), torch.allclose(evaluated, results[0][0], atol=1e-6)]
        return differences, drops
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("groups", "head"), [(4, 8), (2, 8), (1, 24)])
def test_attention_is_that_of_megatron_core(groups: int, head: int, ranks: RankPool) -> None:
    ((differences, drops),) = ranks.run(1, both_attentions, groups, head)
    assert max(differences) <= 1e-5, "output, query, key and value gradients"
    assert drops == [True, True], "dropout acts in training alone"


def norm_difference(ranks: Any, device: Any) -> tuple[float, Any]:
    """Runs in the pool."""
    import torch
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_lm_zh.models.norm import RMSNorm

    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, params_dtype=torch.bfloat16, bf16=True
    )
    norm = RMSNorm(config=config, hidden_size=8, eps=0.25)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 2, 8, dtype=torch.bfloat16)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 0.25).sqrt() * norm.weight.double()
    return float((norm(x).double() - expected).abs().max()), str(norm.weight.dtype)


def test_norm_is_root_mean_square(ranks: RankPool) -> None:
    ((difference, dtype),) = ranks.run(1, norm_difference)
    assert difference < 0.05 and dtype == "torch.bfloat16"
