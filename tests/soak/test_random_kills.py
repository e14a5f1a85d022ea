"""SIGKILL at random moments, also while a checkpoint is being written: the run that is left is bit for bit the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.training import curve, rows

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

KILLS = 20
SETTINGS = ["train.steps=1000", "checkpoint.interval=5", "checkpoint.keep_last=2", "evaluate.interval=500"]


def start(config: Path, run: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "megatron_lm_zh", "pretrain", str(config), f"run.dir={run}", *SETTINGS]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, "parallel.tensor=2"], stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def is_rank(process: psutil.Process) -> bool:
    try:
        return "pretrain" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def test_random_kills_change_nothing(tiny_run: Path) -> None:
    draw = random.Random(20)
    whole, killed, log = (tiny_run.parent / name for name in ("whole", "killed", "log"))
    assert start(tiny_run, whole, log).wait() == 0, log.read_text()
    kills = 0
    while True:
        process = start(tiny_run, killed, log)
        rows_before = (killed / "metrics.jsonl").stat().st_size if (killed / "metrics.jsonl").exists() else 0
        while process.poll() is None and kills < KILLS:  # until it trains
            metrics = killed / "metrics.jsonl"
            if metrics.exists() and metrics.stat().st_size != rows_before:
                break
            time.sleep(0.01)
        if kills == KILLS or process.poll() is not None:
            break
        time.sleep(draw.uniform(0, 6))
        children = family(process)
        victim = draw.choice([process.pid, *[child.pid for child in children if is_rank(child)]])
        if process.poll() is None:
            os.kill(victim, signal.SIGKILL)
            kills += 1
        process.wait()
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, "whatever was started dies with its rank"
    assert process.wait() == 0, log.read_text()
    assert kills >= KILLS // 2, "the run ended before it was killed often enough: make it longer"
    assert len({row["attempt"] for row in rows(killed)}) > KILLS // 4, "most attempts got as far as a checkpoint"
    assert curve(killed) == curve(whole)
    assert rows(killed, "valid") == rows(whole, "valid")
