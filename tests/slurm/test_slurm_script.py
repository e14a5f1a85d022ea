"""The Slurm script on a real Slurm, with a stand-in for `mlzh`: success, signals, lost ranks, GPUs, containers."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from private_slurm import ROOT, Slurm

SCRIPT = "examples/slurm/pretrain_13b.sh"
pytestmark = pytest.mark.slurm


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, str]:
    """The script's environment: the stand-in, one rank a node."""
    program = tmp_path / "mlzh"
    stand_in = Path(__file__).with_name("stand_in.py")
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {stand_in} "$@"\n')
    program.chmod(0o755)
    return {"MLZH": str(program), "RUN_DIR": str(tmp_path / "run"), "GPUS_PER_NODE": "1"}


def steps(asked: dict[str, str], rank: int) -> list[int]:
    file = Path(asked["RUN_DIR"]) / f"steps_{rank}"
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def environment(asked: dict[str, str], rank: int) -> dict[str, str]:
    return json.loads((Path(asked["RUN_DIR"]) / f"environment_{rank}").read_text())


def wait_for_step(asked: dict[str, str], rank: int, step: int) -> None:
    deadline = time.monotonic() + 30
    while step not in steps(asked, rank):
        assert time.monotonic() < deadline, f"rank {rank} never came to step {step}"
        time.sleep(0.05)


def test_a_run_completes_on_two_nodes(slurm: Slurm, asked: dict[str, str], tmp_path: Path) -> None:
    job = slurm.submit(tmp_path / "log", "--nodes=2", SCRIPT, **asked, OMP_NUM_THREADS="3")
    state = slurm.wait(job, 60)
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), (tmp_path / "log").read_text()
    assert steps(asked, 0) == steps(asked, 1) == [1, 2, 3, 4, 5]
    one = environment(asked, 1)
    assert (one["SLURM_NODEID"], one["SLURM_NTASKS"], one["OMP_NUM_THREADS"]) == ("1", "2", "3")
    assert (one["CUDA_DEVICE_MAX_CONNECTIONS"], one["SLURM_CPUS_PER_TASK"]) == ("1", "4")


def test_the_other_nodes_stand_by(slurm: Slurm, asked: dict[str, str], tmp_path: Path) -> None:
    job = slurm.submit(tmp_path / "log", "--nodes=2", SCRIPT, **asked | {"NODES": "1", "GPUS_PER_NODE": "2"})
    assert slurm.wait(job, 60)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    one = environment(asked, 1)
    assert (one["SLURM_NODEID"], one["SLURM_STEP_NUM_TASKS"], one["SLURM_JOB_NUM_NODES"]) == ("0", "2", "2")
    assert one["OMP_NUM_THREADS"] == "2"  # 4 CPUs, 2 ranks


def test_usr1_saves_requeues_and_goes_on(slurm: Slurm, asked: dict[str, str], tmp_path: Path) -> None:
    asked["EXTRA"] = "steps=20 pause=0.2"
    job = slurm.submit(tmp_path / "log", "--nodes=2", SCRIPT, **asked)
    wait_for_step(asked, 1, 4)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    state = slurm.wait(job, 90)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), (tmp_path / "log").read_text()
    assert steps(asked, 0) == steps(asked, 1) == list(range(1, 21))
    log = (tmp_path / "log").read_text()  # one file for both attempts
    assert log.index("requeued") < log.index(f"job {job}: done")


def test_a_killed_rank_ends_the_step_at_once(slurm: Slurm, asked: dict[str, str], tmp_path: Path) -> None:
    asked["EXTRA"] = "steps=1000 pause=0.1 kill=1"
    job = slurm.submit(tmp_path / "log", "--nodes=2", SCRIPT, **asked)
    wait_for_step(asked, 1, 3)
    killed = time.monotonic()
    state = slurm.wait(job, 60)
    assert time.monotonic() - killed < 10
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "0")
    assert state["ExitCode"] != "0:0"
    ended = len(steps(asked, 0))
    time.sleep(0.5)
    assert len(steps(asked, 0)) == ended


def test_an_end_without_done_is_a_failure(slurm: Slurm, asked: dict[str, str], tmp_path: Path) -> None:
    asked["EXTRA"] = "steps=1000 pause=0.1"
    job = slurm.submit(tmp_path / "log", "--nodes=2", SCRIPT, **asked)
    wait_for_step(asked, 1, 2)
    slurm.run("scancel", "--signal=TERM", f"{job}.0")  # the ranks save and return 0, and nobody asked for a requeue
    state = slurm.wait(job, 60)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "1:0")
    assert "the run is not done (srun gave 0)" in (tmp_path / "log").read_text()


def test_gpus_of_the_allocation_are_asked_for(slurm: Slurm, asked: dict[str, str], tmp_path: Path) -> None:
    gpus = asked | {"GPUS_PER_NODE": "2"}
    job = slurm.submit(tmp_path / "log", "--nodes=1", "--partition=gpu", SCRIPT, **gpus)
    assert slurm.wait(job, 60)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert [environment(asked, rank)["CUDA_VISIBLE_DEVICES"] for rank in range(2)] == ["0,1", "0,1"]
    assert [environment(asked, rank)["SLURM_LOCALID"] for rank in range(2)] == ["0", "1"]


def test_a_sif_container_runs_through_apptainer(slurm: Slurm, asked: dict[str, str], tmp_path: Path) -> None:
    apptainer = tmp_path / "bin" / "apptainer"  # a stand-in: notes its arguments and runs the command behind the image
    apptainer.parent.mkdir()
    apptainer.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/apptainer\nwhile [ "$1" != here.sif ]; do shift; done\nshift\nexec "$@"\n'
    )
    apptainer.chmod(0o755)
    contained = asked | {"CONTAINER": "here.sif", "PATH": f"{apptainer.parent}:{os.environ['PATH']}"}
    job = slurm.submit(tmp_path / "log", "--nodes=1", SCRIPT, **contained)
    assert slurm.wait(job, 60)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert (tmp_path / "apptainer").read_text().startswith(f"exec --nv --bind {ROOT} --pwd {ROOT} here.sif")
