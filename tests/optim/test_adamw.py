"""AdamW: torch's fused one bit for bit, with the step where megatron-core's checkpoints look for it."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist


def five_steps(ranks: Any, device: Any, reload_after: int | None) -> dict[str, Any]:
    """Runs in the pool: ours and torch's on the same parameters and gradients."""
    import torch

    from megatron_lm_zh.optim.adamw import AdamW

    settings: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}

    def groups() -> list[dict[str, Any]]:
        draw = torch.Generator().manual_seed(1)
        matrices = [torch.nn.Parameter(torch.randn(7, 5, generator=draw)) for _ in range(2)]
        vectors = [torch.nn.Parameter(torch.randn(9, generator=draw))]
        return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]

    def parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    ours, theirs = AdamW(groups(), **settings), torch.optim.AdamW(groups(), fused=True, **settings)
    draw = torch.Generator().manual_seed(2)
    equal = []
    for step in range(5):
        for left, right in zip(parameters(ours), parameters(theirs), strict=True):
            left.grad = torch.randn(left.shape, generator=draw)
            right.grad = left.grad.clone()
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 3e-3 / (step + 1)
            optimizer.step()
        if step == reload_after:
            fresh = AdamW([{"params": group["params"]} for group in ours.param_groups])
            fresh.load_state_dict(ours.state_dict())
            ours = fresh
        equal.append(all(map(torch.equal, parameters(ours), parameters(theirs))))
    mine, other = ours.state[parameters(ours)[0]], theirs.state[parameters(theirs)[0]]
    return {
        "equal": equal,
        "moments": [torch.equal(mine[name], other[name]) for name in ("exp_avg", "exp_avg_sq")],
        "steps": [group["step"] for group in ours.param_groups],
        "state": sorted(mine),
    }


@pytest.mark.parametrize("reload_after", [None, 2])
def test_five_steps_are_those_of_torch(reload_after: int | None, ranks: RankPool) -> None:
    (facts,) = ranks.run(1, five_steps, reload_after)
    assert facts["equal"] == [True] * 5
    assert facts["moments"] == [True, True]
    assert facts["steps"] == [5, 5], "the step lives in the group"
    assert facts["state"] == ["exp_avg", "exp_avg_sq"]


def coupled_decay(ranks: Any, device: Any) -> str:
    """Runs in the pool."""
    import torch

    from megatron_lm_zh.optim.adamw import AdamW

    with pytest.raises(ValueError) as caught:
        AdamW([torch.nn.Parameter(torch.ones(1))], adam_w_mode=False)
    return str(caught.value)


def test_coupled_weight_decay_is_refused(ranks: RankPool) -> None:
    assert "decoupled" in ranks.run(1, coupled_decay)[0]
