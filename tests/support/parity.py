"""Rows of the parity table, run in the rank pool; rows that are the same on one rank share that run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dist.parity_rows import ROWS, STEPS, Row

from support.pool import RankPool

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "parity.md"


class ParityBench:
    """Compares rows; remembers what one rank did."""

    def __init__(self, pool: RankPool, *, steps: int = STEPS, timeout_s: float | None = None) -> None:
        self._pool = pool
        self._steps = steps
        self._timeout_s = timeout_s
        self._one_rank: dict[str, list[Any]] = {}

    def compare(self, row: Row) -> Any:
        """The Comparison of a row."""
        from megatron_lm_zh.config.load import load_config

        return self.compare_config(load_config(ROOT / row.config, row.overrides, world=row.ranks), row.ranks)

    def compare_config(self, config: Any, world: int) -> Any:
        """The Comparison of a config, after a check that the ranks of its world agree with each other."""
        from megatron_lm_zh.parity.compare import compare

        records = self._pool.run(world, record_row, config, self._steps, timeout_s=self._timeout_s)
        assert all(other == records[0] for other in records)
        return compare(self.one_rank(config), records[0], config.precision.dtype)

    def one_rank(self, config: Any) -> list[Any]:
        """The records of the same training on one rank."""
        from megatron_lm_zh.config.load import to_yaml
        from megatron_lm_zh.parity.one_rank import alone

        base = alone(config)
        key = to_yaml(base)
        if key not in self._one_rank:
            (self._one_rank[key],) = self._pool.run(1, record_row, base, self._steps, timeout_s=self._timeout_s)
        return self._one_rank[key]


def record_row(ranks: Any, device: Any, config: Any, steps: int) -> list[Any]:
    """Runs on every rank of the pool."""
    from megatron_lm_zh.parity.record import record

    return record(config, ranks, device, steps=steps)


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The Markdown table of all rows; `results` are Comparisons by the row's name."""
    yield "| row | ranks | loss | grad norm | verdict | command | note |"
    yield "|---|--:|--:|--:|---|---|---|"
    for row in ROWS:
        figures = "? | ? | not run"
        if found := results.get(row.name):
            verdict = "agrees" if found.agrees else "DIFFERS"
            figures = f"{found.loss_difference:.1e} | {found.norm_difference:.1e} | {verdict}"
        command = row.command.replace("|", "\\|")
        yield f"| {row.name} | {row.ranks} | {figures} | `{command}` | {row.note} |"
