"""Every layout against one rank, step by step: the rows of docs/parity.md."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dist.parity_rows import ROWS, STEPS, UNLIKE_ON_0_19, Row
from support.parity import PAGE, ROOT, ParityBench, table
from support.pool import RankPool

from megatron_lm_zh.compat import megatron_core_version

pytestmark = pytest.mark.dist

LARGE = sorted(path for path in (ROOT / "examples/configs").glob("*.yaml") if "\nparallel:" in path.read_text())
SHIPPED_STEPS = 8
AS_TYPED = [row for row in ROWS if row.name in ("tp2-sp", "moe-ep2-etp1-tp2-sp")]


@pytest.fixture(scope="module")
def bench(ranks: RankPool) -> ParityBench:
    return ParityBench(ranks)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[] if row.quick else [pytest.mark.slow]) for row in ROWS]
)
def test_layout_agrees_with_one_rank(row: Row, bench: ParityBench) -> None:
    if row.name in UNLIKE_ON_0_19 and megatron_core_version() >= (0, 19):
        pytest.skip(UNLIKE_ON_0_19[row.name])
    comparison = bench.compare(row)
    assert comparison.agrees, "\n".join(comparison.lines())
    assert len(comparison.one_rank) == STEPS
    assert comparison.weakest_norm > 0.1, "clipping must act, or it hides wrong gradient norms"
    assert comparison.one_rank[-1].lm_loss < comparison.one_rank[0].lm_loss - 0.1, "nothing was learnt"


@pytest.mark.slow
@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_shipped_layouts_agree_scaled_down(path: Path, ranks: RankPool, tmp_path: Path) -> None:
    """What `mlzh parity` does with them; where it says that a balancing loss differs by design, with the exact one."""
    from megatron_lm_zh.config.load import load_config, to_yaml
    from megatron_lm_zh.parity.scale import scaled_down
    from megatron_lm_zh.runtime.device import Device

    config = load_config(path)
    if config.model.moe_router_load_balancing_type == "global_aux_loss":
        config = load_config(path, ["model.moe_router_load_balancing_type=aux_loss"])
    device = Device("cpu", "a processor", torch.device("cpu"), "gloo", False)
    small, world = scaled_down(config, device, steps=SHIPPED_STEPS, ranks=None, fp32=True, vocabulary=True)
    written = tmp_path / "small.yaml"
    written.write_text(to_yaml(small), encoding="utf-8")
    comparison = ParityBench(ranks, steps=SHIPPED_STEPS).compare_config(load_config(written, world=world), world)
    assert comparison.agrees, "\n".join(comparison.lines())


@pytest.mark.parametrize("row", AS_TYPED, ids=lambda row: row.name)
def test_the_printed_command_runs(row: Row, tmp_path: Path) -> None:
    words = shlex.split(row.command)
    assert words.pop(0) == "mlzh"
    command = [sys.executable, "-m", "megatron_lm_zh", *words, "--steps", "3", "--json", str(tmp_path / "table.json")]
    environ = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "table.json").read_text())["agrees"]
    assert "the layout agrees with one rank" in done.stdout


def test_the_page_lists_the_rows() -> None:
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    listed = list(table({}))
    figures = slice(2, 5)  # of | row | ranks | loss | norm | verdict | command | note |

    def fixed(line: str) -> list[str]:
        cells = line.split(" | ")
        return cells[: figures.start] + cells[figures.stop :]

    assert [fixed(line) for line in shown] == [fixed(line) for line in listed]


def test_names_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 45
