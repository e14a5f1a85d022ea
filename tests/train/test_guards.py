"""A loss that is not a number stops the run before it saves anything, and says where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.pool import RankPool
from support.training import checkpoints, curve, incidents, pretrain

pytestmark = pytest.mark.dist

SMALL = ["model.num_layers=2", "train.steps=8", "checkpoint.interval=2", "evaluate.batches=1"]


@pytest.mark.parametrize(
    ("overrides", "rank", "named"),
    [([], 1, "rank 1"), (["parallel.pipeline=2"], 1, "rank 1")],
    ids=["dp2", "pp2"],
)
def test_a_loss_that_is_not_a_number_stops_the_run(
    overrides: list[str], rank: int, named: str, ranks: RankPool, tiny_run: Path
) -> None:
    run = tiny_run.parent / "run"
    outcome = pretrain(ranks, tiny_run, *SMALL, *overrides, world=2, poison_at=4, on_rank=rank)
    assert outcome.exit_code == 3
    assert len(outcome.error.splitlines()) == 1
    assert f"nan at step 4 on {named};" in outcome.error
    assert list(curve(run)) == [1, 2, 3]
    assert checkpoints(run) == ["iter_0000002", "latest_checkpointed_iteration.txt"]
    assert not (run / "DONE").exists()
    (incident,) = incidents(run)
    assert (incident["kind"], incident["step"]) == ("non_finite", 4) and named in incident["message"]
    assert pretrain(ranks, tiny_run, *SMALL, *overrides, world=2).complete, "it goes on from step 2"


def test_clipping_can_be_switched_off(ranks: RankPool, tiny_run: Path) -> None:
    run = tiny_run.parent / "run"
    outcome = pretrain(ranks, tiny_run, *SMALL, "optim.clip_grad=0")
    assert outcome.complete, outcome.error
    assert all(norm > 0 for _, norm, _ in curve(run).values())
