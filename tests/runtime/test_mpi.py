"""Ranks under a real mpirun: each finds its place, all agree on where rank 0 listens."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TELL = """
import dataclasses, json, os, sys
from megatron_lm_zh.runtime.ranks import discover
ranks = discover(os.environ | json.loads(sys.argv[1]))
sys.stdout.write(json.dumps(dataclasses.asdict(ranks)) + "\\n")
"""

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (openmpi-bin)")


def mpirun(ranks: int, changes: dict[str, str]) -> list[dict[str, object]]:
    """What each rank of an mpirun discovers, by rank, with some variables changed."""
    foreign = ("SLURM", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "MLZH", "TORCHELASTIC", "OMPI_", "PMI")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    allowed = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    command = ["mpirun", *allowed, "--oversubscribe", "-n", str(ranks), sys.executable, "-c", TELL, json.dumps(changes)]
    done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda told: told["rank"])


def test_ranks_of_one_host_find_each_other() -> None:
    told = mpirun(2, {})
    assert [(one["rank"], one["local_rank"]) for one in told] == [(0, 0), (1, 1)]
    for one in told:
        assert (one["world"], one["local_world"], one["node_rank"], one["launcher"]) == (2, 2, 0, "mpi")
        assert (one["master_address"], one["master_port"]) == ("127.0.0.1", told[0]["master_port"])


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="mpi4py is not installed (pip install '.[mpi]')")
def test_ranks_of_several_hosts_are_told_rank_0s_host_by_mpi4py() -> None:
    told = mpirun(2, {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    assert [one["node_rank"] for one in told] == [0, 1]
    assert [one["master_address"] for one in told] == [socket.gethostname()] * 2
