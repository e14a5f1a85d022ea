"""Every layout against one rank, step by step: 20 steps in fp32, clipping active at every one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.pool import RankPool

pytestmark = pytest.mark.dist

STEPS = 20

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "tp2": (2, ["parallel.tensor=2"]),
    "tp2-sp": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "pp2": (2, ["parallel.pipeline=2"]),
    "dp2": (2, []),
    "tp2-pp2": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
    "dp2-distributed-optimizer": (2, ["optim.use_distributed_optimizer=true"]),
    "dp2-overlapped": (
        2,
        ["optim.use_distributed_optimizer=true", "ddp.overlap_grad_reduce=true", "ddp.overlap_param_gather=true"],
    ),
    "tp2-dp2-micro-batch-1": (4, ["parallel.tensor=2", "train.micro_batch_size=1"]),
}
"""Name of the layout: its ranks and what it changes in the config."""


def record_steps(ranks: Any, device: Any, config: str, overrides: list[str], steps: int) -> list[Any]:
    """Runs on every rank of the pool."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.parity.record import record

    return record(load_config(config, overrides, world=ranks.world), ranks, device, steps=steps)


def run_steps(pool: RankPool, config: Path, world: int, overrides: list[str], steps: int = STEPS) -> list[Any]:
    """The records of a world, after a check that its ranks agree on them."""
    records = pool.run(world, record_steps, str(config), overrides, steps)
    assert all(other == records[0] for other in records)
    return records[0]


@pytest.fixture(scope="module")
def config(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import yaml

    from support.tiny import tiny_config

    path = tmp_path_factory.mktemp("parity") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tiny_data, path.parent / "run")))
    return path


@pytest.fixture(scope="module")
def one_rank(ranks: RankPool, config: Path) -> list[Any]:
    return run_steps(ranks, config, 1, [])


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_agrees_with_one_rank(name: str, ranks: RankPool, config: Path, one_rank: list[Any]) -> None:
    from megatron_lm_zh.parity.compare import compare

    world, overrides = LAYOUTS[name]
    comparison = compare(one_rank, run_steps(ranks, config, world, overrides), "fp32")
    assert min(record.grad_norm for record in one_rank) > 0.5, "clipping must act, or it hides wrong gradient norms"
    assert comparison.agrees, "\n".join(comparison.lines())


def test_tied_embeddings_agree_across_the_pipeline(ranks: RankPool, config: Path) -> None:
    from megatron_lm_zh.parity.compare import compare

    tied = ["model.tie_embeddings=true"]
    alone = run_steps(ranks, config, 1, tied)
    split = run_steps(ranks, config, 2, [*tied, "parallel.pipeline=2"])
    comparison = compare(alone, split, "fp32")
    assert comparison.agrees, "\n".join(comparison.lines())


@pytest.mark.parametrize(
    "recompute",
    [
        ["model.recompute_granularity=selective"],
        ["model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1"],
        ["model.recompute_granularity=full", "model.recompute_method=block", "model.recompute_num_layers=2"],
    ],
    ids=["selective", "full-uniform", "full-block"],
)
def test_recompute_changes_nothing(
    recompute: list[str], ranks: RankPool, config: Path, one_rank: list[Any]
) -> None:
    assert run_steps(ranks, config, 1, recompute) == one_rank


def test_bf16_layout_agrees_with_bf16_on_one_rank(ranks: RankPool, config: Path) -> None:
    from megatron_lm_zh.parity.compare import compare

    bf16 = ["precision.dtype=bf16"]
    alone = run_steps(ranks, config, 1, bf16)
    split = run_steps(ranks, config, 4, [*bf16, "parallel.tensor=2", "optim.use_distributed_optimizer=true"])
    comparison = compare(alone, split, "bf16")
    assert comparison.agrees, "\n".join(comparison.lines())


def test_losses_fall(one_rank: list[Any]) -> None:
    assert one_rank[-1].lm_loss < one_rank[0].lm_loss - 0.1
