"""What layers report while they train: expert load, balancing and MTP losses, the same under every layout."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool
from support.training import pretrain, rows

pytestmark = pytest.mark.dist

SMALL = ["train.steps=4", "log.interval=2", "checkpoint.interval=2", "evaluate.batches=1"]
MOE = [
    *("model.family=gpt", "model.num_moe_experts=4", "model.moe_ffn_hidden_size=64", "model.moe_layer_freq=[0,1,1,0]"),
    *("model.moe_router_topk=2", "model.moe_aux_loss_coeff=1e-2", "model.moe_z_loss_coeff=1e-3"),
    "optim.clip_grad=1.0",
]
MTP = ["model.family=gpt", "model.mtp_num_layers=2"]


def run(ranks: RankPool, config: Path, *overrides: str, world: int = 1) -> tuple[list[Any], list[Any], str]:
    """Trains in a directory of its own; returns the rows, the experts' tables and the console."""
    directory = config.parent / f"run_{len(list(config.parent.iterdir()))}"
    outcome = pretrain(ranks, config, *SMALL, f"run.dir={directory}", *overrides, world=world)
    assert outcome.complete, outcome.error
    return rows(directory), tables_of(directory), outcome.out


def tables_of(directory: Path) -> list[Any]:
    path = directory / "experts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def layer_figures(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(("moe_", "mtp_"))}


def test_the_experts_load_is_counted(ranks: RankPool, tiny_run: Path) -> None:
    train, tables, out = run(ranks, tiny_run, *MOE)
    assert [row["step"] for row in train] == [table["step"] for table in tables] == [2, 4]
    for row, table in zip(train, tables, strict=True):
        assert table["kind"] == "experts"
        assert list(table["load"]) == ["1", "2"]
        loads = list(table["load"].values())
        assert all(sum(load) == pytest.approx(4, abs=1e-3) for load in loads)
        assert row["moe_load_max"] == pytest.approx(max(map(max, loads)), abs=1e-4)
        assert row["moe_load_min"] == pytest.approx(min(map(min, loads)), abs=1e-4)
        assert row["moe_load_max_mean"] == pytest.approx(sum(map(max, loads)) / 2, abs=1e-4)
        assert 1 <= row["moe_load_max"] <= 4
        assert 1 <= row["moe_aux_loss"] < 2, "1 where the load is even"
        # Router logits are near 0 at first: the squared logarithm of the sum of 4 ones.
        assert row["moe_z_loss"] == pytest.approx(math.log(4) ** 2, rel=0.1)
    assert f"expert load max {train[-1]['moe_load_max']:5.2f}" in out


LAYOUTS = {
    "dp2": (2, []),
    "tp2-ep2": (2, ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2", "parallel.expert_tensor=1"]),
    "ep2": (2, ["parallel.expert=2"]),
    "pp4": (4, ["parallel.pipeline=4"]),  # the first and the last stage have no experts
}


@pytest.mark.parametrize("kind", ["seq_aux_loss", "global_aux_loss"])
def test_figures_do_not_depend_on_the_layout(kind: str, ranks: RankPool, tiny_run: Path) -> None:
    # One step, before gradients could differ; the global loss is over what runs at once, which is all 4 sequences.
    same = [*MOE, f"model.moe_router_load_balancing_type={kind}", "train.global_batch_size=4", "train.steps=1"]
    same += ["schedule.warmup_steps=0", "log.interval=1"]
    (alone,), alone_table, _ = run(ranks, tiny_run, *same, "train.micro_batch_size=4")
    assert len(layer_figures(alone)) == 5
    for name, (world, overrides) in LAYOUTS.items():
        part = 2 if name in ("dp2", "ep2") else 4
        (row,), table, _ = run(ranks, tiny_run, *same, *overrides, f"train.micro_batch_size={part}", world=world)
        assert layer_figures(row) == pytest.approx(layer_figures(alone), rel=1e-5), name
        assert table == alone_table, name


@pytest.mark.parametrize(
    ("world", "overrides"), [(1, []), (2, ["parallel.pipeline=2"]), (2, ["parallel.tensor=2"]), (2, [])]
)
def test_losses_of_multi_token_prediction(world: int, overrides: list[str], ranks: RankPool, tiny_run: Path) -> None:
    train, tables, _ = run(ranks, tiny_run, *MTP, *overrides, world=world)
    assert tables == []
    for row in train:
        assert sorted(layer_figures(row)) == ["mtp_1_loss", "mtp_2_loss"]
        assert row["mtp_1_loss"] == pytest.approx(row["lm_loss"], rel=0.1)


def test_recomputed_layers_count_once_and_evaluation_does_not(ranks: RankPool, tiny_run: Path) -> None:
    full = ["model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1"]
    plain = run(ranks, tiny_run, *MOE)
    again = run(ranks, tiny_run, *MOE, *full, "evaluate.interval=1")
    assert again[1] == plain[1]
    for row, expected in zip(again[0], plain[0], strict=True):
        assert layer_figures(row) == pytest.approx(layer_figures(expected), rel=1e-6)


def test_a_resumed_run_drops_the_tables_after_its_checkpoint(ranks: RankPool, tiny_run: Path) -> None:
    straight, _, _ = run(ranks, tiny_run, *MOE, "log.interval=1")
    other = tiny_run.parent / "stopped"
    settings = [*SMALL, *MOE, "log.interval=1", f"run.dir={other}"]
    assert not pretrain(ranks, tiny_run, *settings, "checkpoint.interval=10", stop_after=2).complete
    assert pretrain(ranks, tiny_run, *settings, "checkpoint.interval=10").complete
    assert [table["step"] for table in tables_of(other)] == [1, 2, 3, 4]
    assert [layer_figures(row) for row in rows(other)] == [layer_figures(row) for row in straight]


def test_a_dense_model_has_no_such_figures(ranks: RankPool, tiny_run: Path) -> None:
    train, tables, _ = run(ranks, tiny_run)
    assert tables == [] and [layer_figures(row) for row in train] == [{}, {}]


def test_the_manual_explains_every_figure(ranks: RankPool, tiny_run: Path) -> None:
    train, _, _ = run(ranks, tiny_run, *MOE, *MTP)
    manual = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in layer_figures(train[0]):
        assert f"`{re.sub('_[0-9]_', '_<depth>_', name)}` |" in manual, name
