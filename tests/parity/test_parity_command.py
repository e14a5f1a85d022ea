"""`mlzh parity`: what it says, and its exit code. The worlds it starts are tests/dist's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_lm_zh.cli import parity
from megatron_lm_zh.cli.main import main_for_arguments
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.parity.compare import StepRecord

ROOT = Path(__file__).parents[2]
DENSE, BIG = str(ROOT / "examples/parity/dense.yaml"), str(ROOT / "examples/configs/13b.yaml")


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[Config, list[StepRecord]]]:
    """Stands for the worlds: their configs by number of ranks; what they record may be set before."""
    started: dict[int, Any] = {}

    def steps_of(name: str, config: Config, world: int, args: Any) -> list[StepRecord]:
        records = started.get(world, [StepRecord(1, 2.0, 1.0), StepRecord(2, 1.9, 1.1)])
        started[world] = (config, records)
        return records

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(parity, "_steps_of", steps_of)
    return started


def test_agreement_is_exit_code_0(worlds: dict[int, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    assert main_for_arguments(["parity", DENSE, "parallel.tensor=2", "--as-is", "--json", str(table)]) == 0
    assert worlds[1][0].parallel.tensor == 1 and worlds[2][0].parallel.tensor == 2
    assert worlds[1][0].train == worlds[2][0].train
    assert json.loads(table.read_text())["agrees"]
    assert "the layout agrees with one rank" in capsys.readouterr().out


def test_difference_is_exit_code_4(worlds: dict[int, Any], capsys: pytest.CaptureFixture[str]) -> None:
    worlds[2] = [StepRecord(1, 2.0, 1.0), StepRecord(2, 1.9, 1.2)]
    assert main_for_arguments(["parity", DENSE, "parallel.tensor=2", "--as-is"]) == 4
    assert "the layout DIFFERS from one rank" in capsys.readouterr().out


def test_it_says_what_it_made_smaller(worlds: dict[int, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_for_arguments(["parity", BIG]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "yours -> here" in out and "hidden_size 5120 -> 64" in out and "dtype bf16 -> fp32" in out
    assert "as asked tensor 2, sequence, pipeline 2, use_distributed_optimizer" in out
    assert set(worlds) == {1, 8}


def test_the_configs_own_format(worlds: dict[int, Any]) -> None:
    assert main_for_arguments(["parity", BIG, "--dtype", "config"]) == 0
    assert worlds[8][0].precision.dtype == "bf16"


def test_ranks_that_cannot_hold_the_layout(worlds: dict[int, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_for_arguments(["parity", BIG, "--ranks", "6"]) == 2
    assert "--ranks 6; expected a multiple of 4" in capsys.readouterr().err


def test_no_steps_are_refused(worlds: dict[int, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_for_arguments(["parity", DENSE, "--steps", "0"]) == 2
    assert "--steps 0; expected at least 1" in capsys.readouterr().err
