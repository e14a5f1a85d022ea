"""A run whose batch grows: steps, tokens and samples as planned, and the same after a stop under another layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.pool import RankPool
from support.training import curve, pretrain, rows

pytestmark = pytest.mark.dist

# Batches of 4, 4, 6, 6, 8, 8 sequences of 32 tokens; 1,000 tokens need 32 sequences, so 6 steps.
SETTINGS = ["train.rampup_batch_size=[4, 2, 16]", "train.steps=null", "train.tokens=1000", "model.num_layers=2"]
SETTINGS += ["train.micro_batch_size=1", "evaluate.interval=100", "evaluate.batches=1", "schedule.warmup_steps=2"]
TOKENS = [32 * consumed for consumed in (4, 8, 14, 20, 28, 36)]


def test_a_growing_batch_survives_a_stop_and_another_layout(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(ranks, tiny_run, *SETTINGS, f"run.dir={whole}").complete
    assert [row["tokens"] for row in rows(whole)] == TOKENS
    first = pretrain(ranks, tiny_run, *SETTINGS, f"run.dir={stopped}", stop_after=3)
    assert not first.complete
    assert pretrain(ranks, tiny_run, *SETTINGS, f"run.dir={stopped}", world=2).complete
    assert [row["tokens"] for row in rows(stopped)] == TOKENS
    expected = curve(whole)
    for step, (loss, norm, lr) in curve(stopped).items():
        assert loss == pytest.approx(expected[step][0], abs=1e-5)
        assert norm == pytest.approx(expected[step][1], rel=1e-4)
        assert lr == expected[step][2]
