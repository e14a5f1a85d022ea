"""Checkpoints of Megatron-FSDP: bit for bit in the same layout, and the distributed optimizer's in any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint.fsdp_ranks import resume, save_and_go_on
from support.pool import RankPool

pytestmark = pytest.mark.dist
pytest.importorskip("einops", reason="Megatron-FSDP arranges its ranks by einops")

CONFIG = Path(__file__).parents[2] / "examples/parity/dense.yaml"
SHARDED = ["model.num_layers=2", "optim.use_distributed_optimizer=true"]
ZERO3 = [*SHARDED, "ddp.use_megatron_fsdp=true"]
ZERO1 = [*ZERO3, "ddp.data_parallel_sharding_strategy=optim"]
SEQUENCE2 = ["parallel.tensor=2", "parallel.sequence=true"]
BF16 = ["precision.dtype=bf16"]


def numbers(pool: RankPool, function: object, world: int, overrides: list[str], directory: Path) -> list[list[float]]:
    from megatron_lm_zh.config.load import load_config

    config = load_config(CONFIG, overrides, world=world)
    answers = pool.run(world, function, config, str(directory))
    assert all(answer == answers[0] for answer in answers)
    return [[*pair] for pair in answers[0]]


@pytest.mark.parametrize(
    ("world", "saved", "same", "others"),
    [
        pytest.param(2, ZERO3, True, [(1, SHARDED), (2, ZERO1)], id="zero3"),
        pytest.param(2, [*ZERO3, *BF16], True, [], id="zero3-bf16"),
        pytest.param(2, ZERO1, True, [(2, SHARDED)], id="zero1", marks=pytest.mark.slow),
        pytest.param(4, [*ZERO3, *SEQUENCE2], True, [(1, SHARDED)], id="zero3-tp2", marks=pytest.mark.slow),
        pytest.param(1, SHARDED, False, [(2, ZERO3)], id="distributed-optimizer"),
    ],
)
def test_what_is_saved_goes_on(
    ranks: RankPool, tmp_path: Path, world: int, saved: list[str], same: bool, others: list[tuple[int, list[str]]]
) -> None:
    expected = numbers(ranks, save_and_go_on, world, saved, tmp_path / "saved")
    if same:
        assert numbers(ranks, resume, world, saved, tmp_path / "saved") == expected
    for other_world, other in others:
        found = numbers(ranks, resume, other_world, other, tmp_path / "saved")
        for row, wanted in zip(found, expected, strict=True):
            assert row == pytest.approx(wanted, rel=1e-6)
