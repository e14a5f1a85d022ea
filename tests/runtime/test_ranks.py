"""Rank discovery reads each launcher's variables right, prefers the nearest launcher, and refuses nonsense."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace

import pytest

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.runtime.ranks import Ranks, discover, first_host

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
}
MLZH = {name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"} | {"MLZH_LAUNCHED": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "1987313665",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM_STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "20",
    "SLURM_STEP_NUM_TASKS": "20",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x3),8",
    "SLURM_STEP_NODELIST": "gpu[003-005,9]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host name resolves, on whatever machine the tests run."""

    def fail(name: str, port: object) -> list[object]:
        raise socket.gaierror(name)

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_alone() -> None:
    assert discover({}) == Ranks(0, 1, 0, 1, 0, "127.0.0.1", 0, "alone")


def test_torchrun() -> None:
    assert discover(TORCHRUN) == Ranks(5, 8, 1, 4, 1, "node0", 29400, "torchrun")


def test_torch_names_without_a_launchers_mark_are_read_like_torchruns() -> None:
    bare = {name: value for name, value in TORCHRUN.items() if name not in ("TORCHELASTIC_RUN_ID", "GROUP_RANK")}
    assert discover(bare) == Ranks(5, 8, 1, 4, 1, "node0", 29400, "torchrun")


def test_our_own_launcher() -> None:
    assert discover(MLZH) == Ranks(5, 8, 1, 4, 1, "node0", 29400, "mlzh")


def test_open_mpi_on_one_host() -> None:
    ranks = discover(OPEN_MPI)
    assert (ranks.rank, ranks.world, ranks.local_rank, ranks.local_world, ranks.node_rank) == (3, 4, 3, 4, 0)
    assert (ranks.master_address, ranks.launcher) == ("127.0.0.1", "mpi")
    assert 20000 <= ranks.master_port < 32000
    assert discover(OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0"}).master_port == ranks.master_port
    assert discover(OPEN_MPI | {"PMIX_NAMESPACE": "7"}).master_port != ranks.master_port


def test_hydra() -> None:
    assert discover(HYDRA) == Ranks(1, 2, 1, 2, 0, "127.0.0.1", 29500, "mpi")


TWO_HOSTS = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


def test_mpi_on_two_hosts_takes_master_addr() -> None:
    ranks = discover(TWO_HOSTS | {"MASTER_ADDR": "a1", "MASTER_PORT": "1234"})
    assert (ranks.master_address, ranks.master_port, ranks.node_rank) == ("a1", 1234, 1)


def test_mpi_on_two_hosts_without_mpi4py_says_what_to_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(UserError, match="export MASTER_ADDR"):
        discover(TWO_HOSTS)


def test_mpi_on_two_hosts_asks_rank_0_through_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SimpleNamespace(bcast=lambda _mine, root: f"host-of-{root}")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", SimpleNamespace(COMM_WORLD=world))
    assert discover(TWO_HOSTS).master_address == "host-of-0"


def test_slurm_step() -> None:
    ranks = discover(SLURM_STEP)
    assert (ranks.rank, ranks.world, ranks.local_rank, ranks.local_world) == (9, 20, 1, 4)
    assert (ranks.node_rank, ranks.master_address, ranks.launcher) == (2, "10.0.0.7", "slurm")
    assert discover(SLURM_STEP | {"SLURM_NODEID": "3", "SLURM_LOCALID": "7"}).local_world == 8


def test_slurm_ports_agree_within_a_step_and_differ_between_steps() -> None:
    port = discover(SLURM_STEP).master_port
    assert 20000 <= port < 32000
    assert discover(SLURM_STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).master_port == port
    assert discover(SLURM_STEP | {"SLURM_STEP_ID": "1"}).master_port != port
    assert discover(SLURM_STEP | {"SLURM_JOB_ID": "78"}).master_port != port
    assert discover(SLURM_STEP | {"MASTER_PORT": "4242"}).master_port == 4242


def test_slurm_master_is_the_steps_first_host_where_names_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, port: [])
    assert discover(SLURM_STEP).master_address == "gpu003"
    assert discover(SLURM_STEP | {"MASTER_ADDR": "chosen"}).master_address == "chosen"


def test_slurm_without_any_address_says_what_to_export() -> None:
    without = {name: value for name, value in SLURM_STEP.items() if name != "SLURM_LAUNCH_NODE_IPADDR"}
    with pytest.raises(UserError, match="export MASTER_ADDR"):
        discover(without)


def test_the_steps_number_of_tasks_counts_not_the_jobs() -> None:
    assert discover(SLURM_STEP | {"SLURM_NTASKS": "128"}).world == 20
    assert discover({k: v for k, v in SLURM_STEP.items() if k != "SLURM_STEP_NUM_TASKS"}).world == 20


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, id="salloc prompt"),
        pytest.param({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, id="sbatch script"),
        pytest.param(SLURM_STEP | {"SLURM_STEP_ID": "4294967291"}, id="numbered batch step"),
        pytest.param(SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "40111"}, id="srun --pty bash"),
    ],
)
def test_shells_inside_an_allocation_are_alone(environ: dict[str, str]) -> None:
    assert discover(environ).launcher == "alone"


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        (SLURM_STEP | OPEN_MPI | MLZH | TORCHRUN, "torchrun"),
        (SLURM_STEP | OPEN_MPI | MLZH, "mlzh"),
        (SLURM_STEP | OPEN_MPI, "mpi"),
        (SLURM_STEP | HYDRA, "mpi"),
        (SLURM_STEP | {"PMI_RANK": "9", "PMI_SIZE": "20"}, "slurm"),  # srun --mpi=pmi2
    ],
)
def test_the_nearest_launcher_wins(environ: dict[str, str], launcher: str) -> None:
    assert discover(environ).launcher == launcher


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"RANK": "0"}, "LOCAL_WORLD_SIZE"),
        ({k: v for k, v in TORCHRUN.items() if k != "WORLD_SIZE"}, "WORLD_SIZE"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, "MASTER_ADDR"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT"),
        (TORCHRUN | {"RANK": "8"}, "rank 8 of 8"),
        (TORCHRUN | {"RANK": "five"}, "RANK='five'"),
        (TORCHRUN | {"RANK": "-1"}, "RANK='-1'"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "local rank 4 of 4"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16"}, "16 ranks on this node"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
        ({"WORLD_SIZE": "4"}, "RANK is not set"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE"),
        (SLURM_STEP | {"SLURM_NODEID": "4"}, "SLURM_NODEID=4"),
        (SLURM_STEP | {"SLURM_STEP_TASKS_PER_NODE": "x"}, "SLURM_STEP_TASKS_PER_NODE='x'"),
        (SLURM_STEP | {"SLURM_PROCID": "20"}, "rank 20 of 20"),
    ],
)
def test_nonsense_is_refused_by_name(environ: dict[str, str], names: str) -> None:
    with pytest.raises(UserError) as caught:
        discover(environ)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-010,14],x1", "gpu003"),
        ("gpu[14,003-010]", "gpu14"),
        ("r[1-2]n[5-6]-ib,login", "r1n5-ib"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
