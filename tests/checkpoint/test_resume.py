"""Resume: bit for bit in the layout that saved, within rounding in another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.pool import RankPool
from support.tiny import tiny_config
from support.training import checkpoints, curve, pretrain, rows

pytestmark = pytest.mark.dist

STEPS = ["model.num_layers=2", "train.steps=8", "checkpoint.interval=4", "evaluate.interval=4", "evaluate.batches=1"]

DROPOUT = ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"]
DISTRIBUTED = ["optim.use_distributed_optimizer=true"]

SAME_LAYOUT: dict[str, tuple[int, list[str]]] = {
    "fp32": (1, []),
    "synchronous-save": (1, ["checkpoint.async_save=false"]),
    "tied-bf16": (1, ["precision.dtype=bf16", "model.tie_embeddings=true"]),
    "dropout-dp2": (2, DROPOUT),
    "dropout-tp2-pp2": (4, [*DROPOUT, "parallel.tensor=2", "parallel.pipeline=2"]),
    "dp2-distributed-optimizer": (2, DISTRIBUTED),
    "dp2-distributed-optimizer-bf16": (2, [*DISTRIBUTED, "precision.dtype=bf16"]),
}
"""Name: ranks, and what the config changes."""

TP2, PP2 = ["parallel.tensor=2"], ["parallel.pipeline=2"]

OTHER_LAYOUT: dict[str, tuple[int, list[str], int, list[str]]] = {
    "tp2-to-pp2": (2, TP2, 2, PP2),
    "pp2-to-tp2-sequence": (2, PP2, 2, [*TP2, "parallel.sequence=true"]),
    "dp2-to-dp1": (2, [], 1, []),
    "tp2-dp2-distributed-to-pp2": (4, [*TP2, *DISTRIBUTED], 2, [*PP2, *DISTRIBUTED]),
    "dp1-distributed-to-dp2-distributed": (1, DISTRIBUTED, 2, [*DISTRIBUTED, "train.micro_batch_size=1"]),
}
"""Name: ranks and changes before, ranks and changes after."""


def stop_and_resume(pool: RankPool, config: Path, first: tuple[int, list[str]], second: tuple[int, list[str]]) -> Path:
    """The directory of a run that is stopped after 4 steps in the first layout and resumed in the second."""
    run = config.parent / "run"
    stopped = pretrain(pool, config, *STEPS, *first[1], world=first[0], stop_after=4)
    assert (stopped.exit_code, stopped.complete, stopped.error) == (0, False, "")
    assert not (run / "DONE").exists()
    resumed = pretrain(pool, config, *STEPS, *second[1], world=second[0])
    assert (resumed.exit_code, resumed.complete, resumed.error) == (0, True, "")
    assert "resuming from" in resumed.out and "(step 4)" in resumed.out
    assert (run / "DONE").exists()
    return run


@pytest.fixture(scope="module")
def one_rank(ranks: RankPool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """The curve of a run on one rank that nothing interrupts."""
    directory = tmp_path_factory.mktemp("one_rank")
    config = directory / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tiny_data, directory / "run")))
    assert pretrain(ranks, config, *STEPS).complete
    return curve(directory / "run")


@pytest.mark.parametrize("name", SAME_LAYOUT)
def test_same_layout_goes_on_bit_for_bit(name: str, ranks: RankPool, tiny_run: Path) -> None:
    world, overrides = SAME_LAYOUT[name]
    whole = tiny_run.parent / "whole"
    assert pretrain(ranks, tiny_run, f"run.dir={whole}", *STEPS, *overrides, world=world).complete
    parts = stop_and_resume(ranks, tiny_run, (world, overrides), (world, overrides))
    assert list(curve(parts)) == list(range(1, 9))
    assert curve(parts) == curve(whole)
    assert rows(parts, "valid") == rows(whole, "valid")


@pytest.mark.parametrize("name", OTHER_LAYOUT)
def test_other_layout_goes_on_within_rounding(
    name: str, ranks: RankPool, tiny_run: Path, one_rank: dict[int, Any]
) -> None:
    world, overrides, world_after, overrides_after = OTHER_LAYOUT[name]
    found = curve(stop_and_resume(ranks, tiny_run, (world, overrides), (world_after, overrides_after)))
    assert list(found) == list(range(1, 9))
    for step in range(5, 9):
        assert found[step][0] == pytest.approx(one_rank[step][0], abs=1e-5)
        assert found[step][1] == pytest.approx(one_rank[step][1], rel=1e-3)
        assert found[step][2] == one_rank[step][2]


def test_a_step_stands_once_and_says_its_attempt(ranks: RankPool, tiny_run: Path) -> None:
    run = tiny_run.parent / "run"
    pretrain(ranks, tiny_run, *STEPS, "checkpoint.interval=3", stop_after=7)
    # As after a kill between two checkpoints: rows beyond the newest one, the last of them torn.
    shutil.rmtree(run / "checkpoints/iter_0000007")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 8, "lm_lo')
    assert pretrain(ranks, tiny_run, *STEPS).complete
    assert [(row["step"], row["attempt"]) for row in rows(run)] == [(s, 1 if s <= 6 else 2) for s in range(1, 9)]
    assert [row["tokens"] for row in rows(run)] == [step * 8 * 32 for step in range(1, 9)]


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_to_one_rank_stops_all_at_the_step_boundary(signal_name: str, ranks: RankPool, tiny_run: Path) -> None:
    run = tiny_run.parent / "run"
    outcome = pretrain(ranks, tiny_run, *STEPS, *TP2, world=2, stop_after=3, signal_name=signal_name, on_rank=1)
    assert (outcome.exit_code, outcome.complete) == (0, False)
    assert list(curve(run)) == [1, 2, 3]
    assert checkpoints(run) == ["iter_0000003", "latest_checkpointed_iteration.txt"]
    assert not (run / "DONE").exists()


def test_a_signal_in_the_last_step_leaves_a_finished_run(ranks: RankPool, tiny_run: Path) -> None:
    outcome = pretrain(ranks, tiny_run, *STEPS, stop_after=8)
    assert outcome.complete
    assert json.loads((tiny_run.parent / "run/DONE").read_text()) == {"step": 8}


def test_a_finished_run_started_again_says_so_and_changes_nothing(ranks: RankPool, tiny_run: Path) -> None:
    run = tiny_run.parent / "run"
    pretrain(ranks, tiny_run, *STEPS)
    metrics, saved = (run / "metrics.jsonl").read_bytes(), checkpoints(run)
    again = pretrain(ranks, tiny_run, *STEPS)
    assert again.complete and "done: 8 steps" in again.out
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert checkpoints(run) == saved
    assert (run / "DONE").exists()
