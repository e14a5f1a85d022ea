"""Groups of experts scored by their best expert: the experts that transformers' DeepSeek-V2 chooses, in every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.pool import RankPool
from torch import Tensor
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

pytestmark = pytest.mark.dist

EXAMPLES = Path(__file__).parents[2] / "examples" / "parity"
# As in DeepSeek-V2 (236B).
TOKENS, EXPERTS, GROUPS, CHOSEN_GROUPS, TOPK, SCALE = 512, 160, 8, 3, 6, 16.0
SIZES = [
    "model.num_layers=1",
    f"model.num_moe_experts={EXPERTS}",
    "model.moe_ffn_hidden_size=8",
    f"model.moe_router_num_groups={GROUPS}",
    f"model.moe_router_group_topk={CHOSEN_GROUPS}",
    f"model.moe_router_topk={TOPK}",
    f"model.moe_router_topk_scaling_factor={SCALE}",
]
BEST = "model.moe_router_group_score=max"
SIGMOID = "model.moe_router_score_function=sigmoid"
SCORES = {
    "before": [BEST, "model.moe_router_pre_softmax=true"],
    "after": [BEST],
    "sigmoid": [BEST, SIGMOID],
    "biased": [BEST, SIGMOID, "model.moe_router_enable_expert_bias=true"],
    "sums": ["model.moe_router_pre_softmax=true"],
    "one": [BEST, "model.moe_router_pre_softmax=true", f"model.moe_router_topk={CHOSEN_GROUPS}"],
    "sum of one": ["model.moe_router_pre_softmax=true", f"model.moe_router_topk={CHOSEN_GROUPS}"],
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def routes(ranks: Any, device: Any, variants: list[list[str]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Runs in the pool: of each config its router's weights [tokens, experts], the same computed again without
    gradients, and the gradient of the logits."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.groups import process_groups

    configs = [load_config(EXAMPLES / "moe.yaml", [*SIZES, *variant], world=1) for variant in variants]
    found = []
    with process_groups(configs[0], ranks, device):
        for config in configs:
            router = build_gpt(config, device).decoder.layers[0].mlp.router
            if router.expert_bias is not None:
                router.expert_bias.copy_(drawn(EXPERTS) / 4)
            logits = drawn(TOKENS, 1, EXPERTS).requires_grad_()
            weights, chosen = router.routing(logits)
            assert torch.equal(weights.detach() > 0, chosen)
            (weights * torch.arange(EXPERTS)).sum().backward()
            with torch.no_grad():
                again, _ = router.routing(logits)
            found.append((weights.detach().clone(), again.clone(), logits.grad.clone()))
    return found


def expected(logits: Tensor, bias: Tensor | None = None) -> Tensor:
    """Whether a token has an expert, [tokens, experts], written down as the paper says it."""
    scores = logits.sigmoid() + bias if bias is not None else logits
    chosen = torch.zeros(scores.shape, dtype=torch.bool)
    size = EXPERTS // GROUPS
    for token, row in enumerate(scores.tolist()):
        groups = sorted(range(GROUPS), key=lambda group: -max(row[group * size : (group + 1) * size]))[:CHOSEN_GROUPS]
        within = [expert for expert in range(EXPERTS) if expert // size in groups]
        chosen[token, sorted(within, key=lambda expert: -row[expert])[:TOPK]] = True
    return chosen


def of_transformers(logits: Tensor) -> Tensor:
    """Weights [tokens, experts] by transformers; the router's matrix is the identity."""
    config = DeepseekV2Config(
        hidden_size=EXPERTS,
        n_routed_experts=EXPERTS,
        n_group=GROUPS,
        topk_group=CHOSEN_GROUPS,
        num_experts_per_tok=TOPK,
        topk_method="group_limited_greedy",
        routed_scaling_factor=SCALE,
    )
    router = DeepseekV2TopkRouter(config)
    with torch.no_grad():
        router.weight.copy_(torch.eye(EXPERTS))
        _, weights, experts = router(logits)
    return torch.zeros_like(logits).scatter(1, experts, weights)


def test_a_token_gets_the_experts_of_the_groups_with_the_best_ones(ranks: RankPool) -> None:
    (answers,) = ranks.run(1, routes, list(SCORES.values()))
    found = dict(zip(SCORES, answers, strict=True))
    logits = drawn(TOKENS, 1, EXPERTS).squeeze(1)
    weights = {name: answer[0] for name, answer in found.items()}
    for answer in found.values():
        assert torch.equal(answer[0], answer[1]), "computed again, as recompute does"
        assert answer[2].isfinite().all() and answer[2].abs().sum() > 0

    torch.testing.assert_close(weights["before"], of_transformers(logits), rtol=1e-6, atol=0)
    for name in ("before", "after", "sigmoid"):
        assert torch.equal(weights[name] > 0, expected(logits)), name
    assert torch.equal(weights["biased"] > 0, expected(logits, drawn(EXPERTS) / 4))
    for name in ("after", "sigmoid", "biased"):
        torch.testing.assert_close(weights[name].sum(dim=1), torch.full((TOKENS,), SCALE))

    assert torch.equal(weights["one"], weights["sum of one"])
    other = ((weights["before"] > 0) != (weights["sums"] > 0)).any(dim=1).float().mean().item()
    print(f"megatron-core's sums give {other:.0%} of the tokens other experts")
    assert other > 0.25


def routers_of_layers(ranks: Any, device: Any) -> list[str]:
    """Runs in the pool: the classes of the routers of a model with a prediction module."""
    from megatron.core.transformer.moe.router import TopKRouter

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.groups import process_groups

    groups = ["model.moe_router_num_groups=2", "model.moe_router_group_topk=1", BEST]
    config = load_config(EXAMPLES / "deepseek.yaml", groups, world=1)
    with process_groups(config, ranks, device):
        modules = build_gpt(config, device).modules()
        return [type(module).__name__ for module in modules if isinstance(module, TopKRouter)]


def test_every_layer_with_experts_has_it(ranks: RankPool) -> None:
    assert ranks.run(1, routers_of_layers) == [["BestExpertRouter"] * 4]
