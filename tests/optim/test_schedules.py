"""Learning rates by schedule, and which parameters decay. A new schedule is one row here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

STEPS, WARMUP, PEAK, LOWEST = 20, 4, 0.001, 0.0002
MIDDLE = WARMUP + (STEPS - WARMUP) // 2
LAST = 15 / 16  # share of the decay that is done before the last of the 16 steps after the warm-up
TO_LOWEST = f"schedule.min_lr={LOWEST}"

SCHEDULES: dict[str, tuple[list[str], float, float]] = {
    "constant": ([], PEAK, PEAK),
    "linear": ([TO_LOWEST], (PEAK + LOWEST) / 2, PEAK - (PEAK - LOWEST) * LAST),
    "cosine": ([TO_LOWEST], (PEAK + LOWEST) / 2, LOWEST + (PEAK - LOWEST) * (1 + math.cos(math.pi * LAST)) / 2),
    "wsd": (
        [TO_LOWEST, "schedule.decay_steps=5", "schedule.decay_style=linear"],
        PEAK,
        PEAK - (PEAK - LOWEST) * 4 / 5,
    ),
}
"""Kind: its settings, and the learning rate in the middle of the steps after the warm-up and at the last step."""


def learning_rates(ranks: Any, device: Any, config: str, overrides: list[str]) -> tuple[list[float], list[Any]]:
    """Runs in the pool: the learning rate that each step of the run uses, and the groups' weight decay."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.optim.build import build_optimizer, build_scheduler
    from megatron_lm_zh.runtime.groups import process_groups

    loaded = load_config(config, ["model.vocab_size=401", *overrides], world=ranks.world)
    with process_groups(loaded, ranks, device):
        model = build_model(loaded, device)
        optimizer = build_optimizer(loaded, model)
        scheduler = build_scheduler(loaded, optimizer)
        rates = []
        for _ in range(loaded.total_steps):
            (rate,) = {group["lr"] for group in optimizer.param_groups}
            rates.append(rate)
            scheduler.step(1)
        groups = [
            (group["weight_decay"], sorted({parameter.dim() for parameter in group["params"]}), len(group["params"]))
            for group in optimizer.param_groups
        ]
        return rates, groups


def test_every_schedule_has_a_row() -> None:
    import typing

    from megatron_lm_zh.config.schedules import Schedule

    kinds = typing.get_args(typing.get_args(Schedule)[0])
    assert {kind().kind if kind.__name__ != "WarmupStableDecay" else "wsd" for kind in kinds} == set(SCHEDULES)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rate(kind: str, ranks: RankPool, tiny_run: Path) -> None:
    settings, middle, last = SCHEDULES[kind]
    overrides = [f"train.steps={STEPS}", f"schedule.kind={kind}", f"schedule.warmup_steps={WARMUP}", *settings]
    ((rates, _),) = ranks.run(1, learning_rates, str(tiny_run), overrides)
    # The step after n others has the rate of n: the first step of a warm-up has 0.
    assert rates[: WARMUP + 1] == pytest.approx([PEAK * step / WARMUP for step in range(WARMUP + 1)])
    assert rates[MIDDLE] == pytest.approx(middle)
    assert rates[-1] == pytest.approx(last)
    assert rates[WARMUP:] == sorted(rates[WARMUP:], reverse=True)


def test_without_warmup_the_first_step_has_the_peak(ranks: RankPool, tiny_run: Path) -> None:
    overrides = ["schedule.warmup_steps=0", "schedule.kind=constant"]
    ((rates, _),) = ranks.run(1, learning_rates, str(tiny_run), overrides)
    assert set(rates) == {PEAK}


def test_vectors_do_not_decay(ranks: RankPool, tiny_run: Path) -> None:
    ((_, groups),) = ranks.run(1, learning_rates, str(tiny_run), ["optim.weight_decay=0.3"])
    assert sorted(groups) == [(0.0, [1], 2 * 4 + 1), (0.3, [2], 4 * 4 + 2)]
