"""Rank discovery: who this process is in the world, told by torchrun, our own launcher, mpirun, srun or nobody."""

from __future__ import annotations

import importlib
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_lm_zh.errors import UserError

Launcher = Literal["alone", "torchrun", "slurm", "mpi", "mlzh"]

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral ports (32768 up): an outgoing connection can never sit on the port that rank 0 must bind.
_FIRST_PORT, _PORTS = 20000, 12000
# Slurm numbers its own steps (batch script, interactive shell, extern) from here up; user steps count from 0.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Ranks:
    """The place of this process in the world.

    Attributes:
        rank: global rank, 0 <= rank < world.
        world: number of ranks.
        local_rank: rank among the ranks of this node; picks the GPU.
        local_world: ranks on this node.
        node_rank: number of this node. Under mpirun, which does not tell, rank // local_world.
        master_address: host where rank 0 listens.
        master_port: port where rank 0 listens; 0 (any free port) in a world of one that nobody launched.
        launcher: who started this process.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    node_rank: int
    master_address: str
    master_port: int
    launcher: Launcher


def discover(environ: Mapping[str, str]) -> Ranks:
    """Reads this process's place in the world from its environment.

    The nearest launcher wins: torchrun, then `mlzh` itself, then mpirun (Open MPI or a Hydra one), then srun. An sbatch
    script, an salloc prompt and `srun --pty bash` are no ranks: there the process is alone.

    Raises:
        UserError: values are missing, garbled or contradict each other.
    """
    env = _Environment(environ)
    if "TORCHELASTIC_RUN_ID" in environ or ("RANK" in environ and "MLZH_LAUNCHED" not in environ):
        ranks = _from_torch_names(env, "torchrun")
    elif "MLZH_LAUNCHED" in environ:
        ranks = _from_torch_names(env, "mlzh")
    elif "OMPI_COMM_WORLD_RANK" in environ:
        ranks = _from_mpi(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", _OMPI_LOCAL)
    elif "PMI_RANK" in environ and "MPI_LOCALRANKID" in environ:  # srun's own PMI sets PMI_RANK alone
        ranks = _from_mpi(env, "PMI_RANK", "PMI_SIZE", _HYDRA_LOCAL)
    elif _in_slurm_step(env):
        ranks = _from_slurm(env)
    else:
        ranks = _alone(env)
    _check(ranks)
    return ranks


class _Environment:
    """The environment, read with errors that name the variable."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str | None:
        """The value, or None when it is unset or blank."""
        return self._environ.get(name, "").strip() or None

    def number(self, name: str, launcher: str, default: int | None = None) -> int:
        """The value as a non-negative integer; without a default the variable must be set."""
        value = self.text(name)
        if value is None:
            if default is not None:
                return default
            raise UserError(
                f"{name} is not set although other variables say that {launcher} started this process",
                where="environment",
                mend=f"start with torchrun, srun, mpirun or plain `mlzh`, or export {name}",
            )
        if not (value.isascii() and value.isdigit()):
            raise UserError(f"{name}={value!r}", where="environment", expected="a non-negative integer")
        return int(value)

    def port(self, launcher: str, default: int | None = None) -> int:
        """MASTER_PORT, or the default."""
        port = self.number("MASTER_PORT", launcher, default)
        if not 0 < port < 65536:
            raise UserError(f"MASTER_PORT={port}", where="environment", expected="a port from 1 to 65535")
        return port


def _from_torch_names(env: _Environment, launcher: Literal["torchrun", "mlzh"]) -> Ranks:
    rank = env.number("RANK", launcher)
    local_world = env.number("LOCAL_WORLD_SIZE", launcher)
    address = env.text("MASTER_ADDR")
    if address is None:
        raise UserError(
            f"MASTER_ADDR is not set although RANK={rank}", where="environment", mend="export the host of rank 0"
        )
    return Ranks(
        rank=rank,
        world=env.number("WORLD_SIZE", launcher),
        local_rank=env.number("LOCAL_RANK", launcher),
        local_world=local_world,
        node_rank=env.number("GROUP_RANK", launcher, default=rank // max(local_world, 1)),
        master_address=address,
        master_port=env.port(launcher),
        launcher=launcher,
    )


_OMPI_LOCAL = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_HYDRA_LOCAL = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _from_mpi(env: _Environment, rank_name: str, world_name: str, local_names: tuple[str, str]) -> Ranks:
    rank, world = env.number(rank_name, "mpirun"), env.number(world_name, "mpirun")
    local_rank, local_world = (env.number(name, "mpirun") for name in local_names)
    # All ranks of one mpirun share the name space; a Hydra mpirun has none and takes torch's customary port.
    job = env.text("PMIX_NAMESPACE") or env.text("OMPI_MCA_ess_base_jobid")
    port = env.port("mpirun", _port_of(job) if job else 29500)
    address = env.text("MASTER_ADDR")
    if address is None:
        address = LOOPBACK if local_world == world else _host_of_rank_0()
    return Ranks(rank, world, local_rank, local_world, rank // max(local_world, 1), address, port, "mpi")


def _host_of_rank_0() -> str:
    """The host name of rank 0, broadcast over MPI; several hosts share no environment that would tell it."""
    try:
        mpi = importlib.import_module("mpi4py.MPI")
    except ImportError:
        raise UserError(
            "mpirun started ranks on several hosts and none of them knows where rank 0 is",
            where="environment",
            mend="export MASTER_ADDR=<host of rank 0> (mpirun -x MASTER_ADDR) or install mpi4py",
        ) from None
    return str(mpi.COMM_WORLD.bcast(socket.gethostname(), root=0))


def _in_slurm_step(env: _Environment) -> bool:
    if env.text("SLURM_STEP_ID") is None or env.text("SLURM_PROCID") is None:
        return False
    if env.number("SLURM_STEP_ID", "srun") >= _FIRST_SPECIAL_STEP:
        return False
    interactive = env.text("SLURM_PTY_PORT") is not None  # `srun --pty bash`: a shell to type in
    return not (interactive and _slurm_world(env) == 1)


def _slurm_world(env: _Environment) -> int:
    # SLURM_NTASKS is the job's under `srun --preserve-env`; the step's own name is never another's.
    return env.number("SLURM_STEP_NUM_TASKS", "srun", env.number("SLURM_NTASKS", "srun", default=0) or None)


def _from_slurm(env: _Environment) -> Ranks:
    node_rank = env.number("SLURM_NODEID", "srun")
    layout = env.text("SLURM_STEP_TASKS_PER_NODE") or env.text("SLURM_TASKS_PER_NODE") or ""
    tasks = _tasks_per_node(layout)
    if node_rank >= len(tasks):
        raise UserError(
            f"SLURM_NODEID={node_rank} but SLURM_STEP_TASKS_PER_NODE={layout!r} has {len(tasks)} nodes",
            where="environment",
        )
    job, step = env.number("SLURM_JOB_ID", "srun"), env.number("SLURM_STEP_ID", "srun")
    return Ranks(
        rank=env.number("SLURM_PROCID", "srun"),
        world=_slurm_world(env),
        local_rank=env.number("SLURM_LOCALID", "srun"),
        local_world=tasks[node_rank],
        node_rank=node_rank,
        master_address=env.text("MASTER_ADDR") or _slurm_master(env),
        master_port=env.port("srun", _port_of(f"{job}.{step}")),
        launcher="slurm",
    )


def _tasks_per_node(layout: str) -> list[int]:
    """Tasks of each node of a step, from Slurm's short form: `4(x2),1` is 4, 4, 1."""
    tasks: list[int] = []
    for part in layout.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise UserError(
                f"SLURM_STEP_TASKS_PER_NODE={layout!r}", where="environment", expected="Slurm's form, e.g. 8(x16)"
            )
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def _slurm_master(env: _Environment) -> str:
    """The step's first host, or, where node names do not resolve, the address of the host that ran srun.

    The latter alone is not enough: with `srun` typed on a login node it is the login node's, and rank 0 is elsewhere.
    """
    nodes = env.text("SLURM_STEP_NODELIST") or env.text("SLURM_JOB_NODELIST")
    first = first_host(nodes) if nodes else None
    fallback = env.text("SLURM_LAUNCH_NODE_IPADDR")
    if first is not None:
        try:
            socket.getaddrinfo(first, None)
        except OSError:
            first = fallback
    address = first or fallback
    if address is None:
        raise UserError(
            "no host of rank 0: SLURM_STEP_NODELIST and SLURM_LAUNCH_NODE_IPADDR are not of use",
            where="environment",
            mend="export MASTER_ADDR=<host of rank 0> before srun",
        )
    return address


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[003-010,14],x1` gives `gpu003`, `r[1-2]n[5-6]` gives `r1n5`."""
    head = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", head[0]) if head else ""


def _port_of(job: str) -> int:
    """A port that all ranks of a job agree on without talking, and two jobs on one node hardly ever share."""
    return _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS


def _alone(env: _Environment) -> Ranks:
    if env.number("WORLD_SIZE", "", default=1) > 1:
        raise UserError(
            f"WORLD_SIZE={env.text('WORLD_SIZE')} but RANK is not set",
            where="environment",
            mend="start with torchrun, srun or mpirun, or unset WORLD_SIZE",
        )
    return Ranks(0, 1, 0, 1, 0, LOOPBACK, 0, "alone")


def _check(ranks: Ranks) -> None:
    """Refuses a place that does not exist in its world."""
    for inner, outer, small, large in (
        ("rank", "world", ranks.rank, ranks.world),
        ("local rank", "ranks on this node", ranks.local_rank, ranks.local_world),
    ):
        if small >= large:
            raise UserError(
                f"{inner} {small} of {large} {outer} (told by {ranks.launcher})",
                where="environment",
                expected=f"0 <= {inner} < {outer}",
                mend="unset what a former launcher left behind",
            )
    if ranks.local_world > ranks.world:
        raise UserError(
            f"{ranks.local_world} ranks on this node in a world of {ranks.world} (told by {ranks.launcher})",
            where="environment",
            mend="unset what a former launcher left behind",
        )
