"""Every schedule against its closed formula at every step, and the ramp of the weight decay; a schedule is a row."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

STEPS, WARMUP, PEAK, LOWEST, FIRST = 20, 4, 1e-3, 2e-4, 1e-4
AFTER, DECAY = STEPS - WARMUP, 5

# The share t of a decay that is done, to the share of PEAK - LOWEST that is left.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "exponential": lambda t: 2 * 0.5**t - 1,
    "minus_sqrt": lambda t: 1 - math.sqrt(t),
}
Formula = Callable[[int], float]


def _decaying(shape: Callable[[float], float], start: int) -> Formula:
    """The learning rate of the step after n others, for a decay from step `start` to the last."""
    return lambda n: LOWEST + (PEAK - LOWEST) * shape(max(0.0, (n - start) / (STEPS - start)))


def _stable(style: str) -> tuple[str, Formula]:
    text = f"{{kind: wsd, decay_steps: {DECAY}, decay_style: {style}"
    return text, _decaying(SHAPES[style], STEPS - DECAY)


TO_LOWEST = f", min_lr: {LOWEST}"
SCHEDULES: dict[str, tuple[str, Formula]] = {
    "constant": ("{kind: constant", lambda n: PEAK),
    "linear": ("{kind: linear" + TO_LOWEST, _decaying(SHAPES["linear"], WARMUP)),
    "cosine": ("{kind: cosine" + TO_LOWEST, _decaying(SHAPES["cosine"], WARMUP)),
    "inverse_square_root": (
        "{kind: inverse_square_root" + f", min_lr: {PEAK / 2}",
        lambda n: max(PEAK / 2, PEAK * math.sqrt(WARMUP / n)),
    ),
} | {f"wsd-{style}": (text + TO_LOWEST, formula) for style in SHAPES for text, formula in [_stable(style)]}
"""Kind: its settings, and the learning rate that the step after n others uses, from the end of the warm-up on."""


def _rates(ranks: Any, device: Any, config: str, each: list[list[str]]) -> list[list[tuple[float, float]]]:
    """Runs in the pool: learning rate and weight decay of every step, for each list of overrides."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.optim.build import build_scheduler

    results: list[list[tuple[float, float]]] = []
    for overrides in each:
        loaded = load_config(config, [f"train.steps={STEPS}", *overrides])
        group: dict[str, Any] = {"params": []}
        optimizer: Any = SimpleNamespace(param_groups=[group])
        scheduler = build_scheduler(loaded, optimizer)
        results.append([])
        for _ in range(STEPS):
            results[-1].append((group["lr"], group["weight_decay"]))
            scheduler.step(1)
    return results


def test_every_schedule_has_a_row() -> None:
    from megatron_lm_zh.config.schedules import Schedule, WarmupStableDecay

    kinds = typing.get_args(typing.get_args(Schedule)[0])
    named = {"wsd" if kind is WarmupStableDecay else kind().kind for kind in kinds}
    assert named == {name.split("-")[0] for name in SCHEDULES}
    assert set(typing.get_args(typing.get_type_hints(WarmupStableDecay)["decay_style"])) == set(SHAPES)


def test_learning_rate_is_the_formula(ranks: RankPool, tiny_run: Path) -> None:
    warmup = f", warmup_steps: {WARMUP}, warmup_init_lr: {FIRST}}}"
    overrides = [["schedule=" + text + warmup] for text, _ in SCHEDULES.values()]
    (answers,) = ranks.run(1, _rates, str(tiny_run), overrides)
    for (name, (_, formula)), answer in zip(SCHEDULES.items(), answers, strict=True):
        rates = [rate for rate, _ in answer]
        # The step after n others has the rate of n: the first step of a warm-up has warmup_init_lr.
        rising = [FIRST + (PEAK - FIRST) * n / WARMUP for n in range(WARMUP + 1)]
        assert rates == pytest.approx(rising + [formula(n) for n in range(WARMUP + 1, STEPS)]), name
        assert rates[WARMUP] == PEAK


def test_without_warmup_the_first_step_has_the_peak(ranks: RankPool, tiny_run: Path) -> None:
    kinds = [text + ", warmup_steps: 0}" for text, _ in SCHEDULES.values()]
    (answers,) = ranks.run(1, _rates, str(tiny_run), [[f"schedule={text}"] for text in kinds])
    assert [answer[0][0] for answer in answers] == [PEAK] * len(kinds)


def test_weight_decay_rises_along_its_ramp(ranks: RankPool, tiny_run: Path) -> None:
    ramp = ["optim.start_weight_decay=0.02", "optim.weight_decay=0.12"]
    each = [[*ramp, f"optim.weight_decay_incr_style={style}"] for style in ("linear", "cosine")]
    (answers,) = ranks.run(1, _rates, str(tiny_run), [*each, ["optim.weight_decay=0.3"]])
    linear, cosine, constant = ([decay for _, decay in answer] for answer in answers)
    assert linear == pytest.approx([0.02 + 0.1 * n / STEPS for n in range(STEPS)])
    assert cosine == pytest.approx([0.02 + 0.1 * (1 - math.cos(math.pi * n / STEPS)) / 2 for n in range(STEPS)])
    assert set(constant) == {0.3}
