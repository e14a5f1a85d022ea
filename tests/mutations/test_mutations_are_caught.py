"""The comparison with one rank sees every one of these faults, and none where there is none."""

from __future__ import annotations

from typing import Any

import pytest
from dist.parity_rows import Row
from mutations.breakages import BREAKAGES, record_broken
from support.parity import ROOT, ParityBench
from support.pool import RankPool

pytestmark = pytest.mark.dist

STEPS = 4
SECONDS = 120.0


@pytest.fixture(scope="module")
def bench(ranks: RankPool) -> ParityBench:
    return ParityBench(ranks, steps=STEPS, timeout_s=SECONDS)


@pytest.fixture(scope="module")
def sound(bench: ParityBench) -> dict[Row, Any]:
    """Every layout without a fault."""
    return {breakage.row: bench.compare(breakage.row) for breakage in BREAKAGES.values()}


def test_layouts_agree_without_a_fault(sound: dict[Row, Any]) -> None:
    assert {row: comparison.agrees for row, comparison in sound.items()} == dict.fromkeys(sound, True)


@pytest.mark.parametrize("fault", BREAKAGES)
def test_a_fault_is_caught(fault: str, ranks: RankPool, bench: ParityBench) -> None:
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.parity.compare import compare

    row = BREAKAGES[fault].row
    config = load_config(ROOT / row.config, row.overrides, world=row.ranks)
    records = ranks.run(row.ranks, record_broken, config, STEPS, fault, timeout_s=SECONDS)
    comparison = compare(bench.one_rank(config), records[0], config.precision.dtype)
    assert not comparison.agrees, "\n".join(comparison.lines())
