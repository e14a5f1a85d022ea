"""The same command on a GPU: what a CPU wrote goes on there, with the layer spec that the machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu


def pretrain(config: Path, *overrides: str, cpu: bool) -> None:
    environ = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})
    command = [sys.executable, "-m", "megatron_lm_zh", "pretrain", str(config), *overrides]
    subprocess.run(command, env=environ, check=True, timeout=300)


def train_rows(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def test_a_gpu_goes_on_where_a_cpu_stopped(tiny_run: Path, tmp_path: Path) -> None:
    on_cpu = f"run.dir={tmp_path / 'cpu'}"
    pretrain(tiny_run, on_cpu, cpu=True)
    mixed = f"run.dir={tmp_path / 'mixed'}"
    pretrain(tiny_run, mixed, cpu=True)
    for newest in (tmp_path / "mixed" / "checkpoints").glob("iter_0000020"):
        (newest / "manifest.json").unlink()  # as if the run had been cut after step 10
    pretrain(tiny_run, mixed, cpu=False)
    expected, found = train_rows(tmp_path / "cpu"), train_rows(tmp_path / "mixed")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    assert max(abs(a["lm_loss"] - b["lm_loss"]) for a, b in zip(expected, found, strict=True)) < 5e-3


def test_bf16_learns(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "bf16"
    pretrain(tiny_run, f"run.dir={run}", "precision.dtype=bf16", "optim.use_distributed_optimizer=true", cpu=False)
    rows = train_rows(run)
    assert rows[-1]["lm_loss"] < rows[0]["lm_loss"] - 0.1
    assert (run / "DONE").is_file()
