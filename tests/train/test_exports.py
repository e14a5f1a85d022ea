"""Hugging Face directories beside the kept checkpoints, made while training goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.pool import RankPool
from support.training import incidents, pretrain

from megatron_lm_zh.convert.to_hf import to_hf

pytestmark = pytest.mark.dist
ALSO = ["checkpoint.also_save_hf=true", "checkpoint.interval=2", "checkpoint.keep_last=2", "train.steps=6"]
SMALL = ["model.num_layers=2", "evaluate.interval=6", "evaluate.batches=1"]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_kept_checkpoint_has_its_export(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = pretrain(ranks, tiny_run, *ALSO, *SMALL, "parallel.tensor=2", world=2)
    assert (outcome.complete, outcome.error) == (True, "")
    assert sorted(path.name for path in (run / "hf").iterdir()) == ["iter_0000004", "iter_0000006"]
    to_hf(run / "checkpoints" / "iter_0000006", tmp_path / "by_hand")
    assert files(run / "hf" / "iter_0000006") == files(tmp_path / "by_hand")


def test_the_next_attempt_makes_what_is_missing(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    longer = [*ALSO, *SMALL, "schedule.kind=constant"]
    assert not pretrain(ranks, tiny_run, *longer, stop_after=2).complete
    assert pretrain(ranks, tiny_run, *longer).complete
    assert sorted(path.name for path in (run / "hf").iterdir()) == ["iter_0000004", "iter_0000006"]


def test_an_export_that_fails_does_not_end_the_run(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "hf" / "iter_0000006.partial").parent.mkdir(parents=True)
    (run / "hf" / "iter_0000006.partial").write_text("in the way")
    outcome = pretrain(ranks, tiny_run, *ALSO, *SMALL)
    assert outcome.complete
    assert "warning: no export of step 6" in outcome.err
    (row,) = [row for row in incidents(run) if row["kind"] == "export_failed"]
    assert row["step"] == 6 and row["message"].startswith("error: ")
    assert json.loads((run / "DONE").read_text()) == {"step": 6}
