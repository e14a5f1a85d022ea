"""The processes of a run: all of them survive a request to stop until it is saved, and none outlives its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.training import curve

pytestmark = pytest.mark.dist


@pytest.fixture
def running(tiny_run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`mlzh pretrain` on two ranks that has written a checkpoint and would train for hours."""
    overrides = ["train.steps=100000", "model.num_layers=2", "parallel.tensor=2", "checkpoint.interval=5"]
    command = [sys.executable, "-m", "megatron_lm_zh", "pretrain", str(tiny_run), *overrides]
    with (tiny_run.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    tracker = tiny_run.parent / "run/checkpoints/latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 120
    while not tracker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.exists(), (tiny_run.parent / "log").read_text()
    yield process
    process.kill()
    process.wait()


def test_a_signal_to_every_process_of_the_job_saves(running: subprocess.Popen[bytes], tiny_run: Path) -> None:
    for process in [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]:
        process.send_signal(signal.SIGUSR1)  # as Slurm does
    assert running.wait(timeout=60) == 0, (tiny_run.parent / "log").read_text()
    run = tiny_run.parent / "run"
    last = max(curve(run))
    assert (run / f"checkpoints/iter_{last:07d}/manifest.json").is_file()
    assert not (run / "DONE").exists()
    assert "stopped by SIGUSR1" in (tiny_run.parent / "log").read_text()


def test_nothing_outlives_a_killed_launcher(running: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) >= 4, "two ranks, each with a helper of its checkpoint writer"
    running.kill()
    running.wait()
    _, alive = psutil.wait_procs([child for child in children if "resource_tracker" not in cmdline(child)], timeout=10)
    assert alive == []


def test_a_second_job_is_refused(running: subprocess.Popen[bytes], tiny_run: Path) -> None:
    run = tiny_run.parent / "run"
    config = (run / "config.yaml").read_bytes()
    command = [sys.executable, "-m", "megatron_lm_zh", "pretrain", str(tiny_run), "model.num_layers=2"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert line.startswith("error: ") and "in use by process" in line
    assert (run / "config.yaml").read_bytes() == config
    assert running.poll() is None


def cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
