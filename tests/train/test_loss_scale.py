"""fp16: a step whose gradient overflows is skipped, counted and told; a scale that cannot fall further ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool
from support.training import incidents, pretrain, rows

pytestmark = pytest.mark.dist

SMALL = ["model.num_layers=2", "train.steps=12", "checkpoint.interval=2", "evaluate.batches=1", "evaluate.interval=20"]
HIGH = 2.0**15  # the gradients, which are sums over tokens until the end, overflow from some 2^12 on
FP16 = ["precision.dtype=fp16", "precision.hysteresis=1", f"precision.initial_loss_scale={HIGH}"]


def curve(run: Path) -> list[tuple[Any, ...]]:
    names = ("step", "lm_loss", "grad_norm", "lr", "loss_scale", "skipped_steps")
    return [tuple(row[name] for name in names) for row in rows(run)]


def test_overflows_are_skipped_and_counted_and_resume_keeps_the_count(ranks: RankPool, tiny_run: Path) -> None:
    run = tiny_run.parent / "run"
    outcome = pretrain(ranks, tiny_run, *SMALL, *FP16)
    assert outcome.complete, outcome.error
    straight = curve(run)
    scale, skipped, rates = HIGH, 0, dict[int, float]()  # rates: by the number of updates before
    for step, loss, norm, lr, used, counted in straight:
        skipped += norm is None
        assert (used, counted) == (scale, skipped), straight
        assert loss > 0 and lr == rates.setdefault(step - 1 - counted + (norm is None), lr), straight
        scale /= 2 if norm is None else 1
    assert straight[0][2] is None and skipped >= 2 and len(rates) >= 4, straight
    assert rates[1] > rates[0], "the warm-up begins with the first update"
    lines = [line for line in outcome.out.splitlines() if line.startswith("step") and "lr" in line]
    assert "overflow: skipped" in lines[0] and lines[0].endswith("skipped 1")
    assert "grad norm" in lines[-1] and lines[-1].endswith(f"skipped {skipped}")

    other = f"run.dir={tiny_run.parent / 'stopped'}"
    assert not pretrain(ranks, tiny_run, *SMALL, *FP16, other, stop_after=8).complete
    assert pretrain(ranks, tiny_run, *SMALL, *FP16, other).complete
    assert curve(tiny_run.parent / "stopped") == straight


@pytest.mark.parametrize("scale", [f"min_loss_scale={HIGH}", f"loss_scale={HIGH}"], ids=["smallest", "fixed"])
def test_a_scale_that_cannot_fall_ends_the_run(scale: str, ranks: RankPool, tiny_run: Path) -> None:
    settings = FP16 if scale.startswith("min") else ["precision.dtype=fp16"]
    outcome = pretrain(ranks, tiny_run, *SMALL, *settings, f"precision.{scale}", world=2)
    assert outcome.exit_code == 3
    assert len(outcome.error.splitlines()) == 1
    assert f"overflowed in fp16 at step 1 under a loss scale of {HIGH:g}" in outcome.error
    (incident,) = incidents(tiny_run.parent / "run")
    assert (incident["kind"], incident["step"]) == ("non_finite", 1)


def test_other_formats_have_no_scale(ranks: RankPool, tiny_run: Path) -> None:
    assert pretrain(ranks, tiny_run, "model.num_layers=1", "train.steps=4", "evaluate.batches=1").complete
    assert not any({"loss_scale", "skipped_steps"} & row.keys() for row in rows(tiny_run.parent / "run"))
