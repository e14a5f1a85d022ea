"""A private, real Slurm on this machine: its own munge, controller and node daemons, on free ports."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODES = 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")

SLURM_CONF = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={place}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=10
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
GresTypes=gpu
SlurmctldPidFile={place}/slurmctld.pid
SlurmctldLogFile={place}/slurmctld.log
StateSaveLocation={place}/state
SlurmdPidFile={place}/slurmd-%n.pid
SlurmdLogFile={place}/slurmd-%n.log
SlurmdSpoolDir={place}/spool-%n
{nodes}
NodeName=g1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=g1 MaxTime=INFINITE State=UP
"""
GRES_CONF = """\
NodeName=g1 Name=gpu File=/dev/null
NodeName=g1 Name=gpu File=/dev/zero
"""
NODE_LINE = "NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"


@dataclass
class Slurm:
    """A running Slurm: partition `cpu` (default) with nodes n1 and n2, and `gpu` with node g1 and two made-up GPUs."""

    place: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a user of this cluster, without what an outer job may have left."""
        foreign = (
            "SLURM",
            "SBATCH",
            "SRUN",
            "OMPI_",
            "PMI",
            "OMP_",
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "MASTER_",
            "MLZH",
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return inherited | {"SLURM_CONF": str(self.place / "slurm.conf")}

    def run(self, *command: str, **environ: str) -> str:
        """The output of a command of a user; a failure is an error."""
        done = subprocess.run(
            command, env=self.environ | environ, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    def submit(self, output: Path, *arguments: str, **environ: str) -> str:
        """Submits a batch job from the repository's root and returns its id."""
        return self.run("sbatch", "--parsable", f"--output={output}", *arguments, **environ).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by its own names (JobState, Restarts, ExitCode, ...)."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, seconds: float) -> dict[str, str]:
        """Waits until a job has ended for good."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.job(job)
            if state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL"):
                return state
            assert time.monotonic() < deadline, f"job {job} is still {state['JobState']} ({state.get('Reason')})"
            time.sleep(0.1)

    def start(self) -> None:
        """Starts the daemons and waits until all nodes are idle."""
        host = socket.gethostname().split(".")[0]
        munge, key = self.place / "munge", self.place / "munge" / "key"
        for folder in (munge, self.place / "state"):
            folder.mkdir()
        for folder in (self.place, munge):
            folder.chmod(0o711)
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports = free_ports(2 + NODES)
        nodes = "\n".join(
            NODE_LINE.format(number=number, host=host, port=ports[1 + number]) for number in range(1, NODES + 1)
        )
        text = SLURM_CONF.format(host=host, user=user(), place=self.place, ports=ports, nodes=nodes, count=NODES)
        (self.place / "slurm.conf").write_text(text)
        (self.place / "gres.conf").write_text(GRES_CONF)
        files = ("key-file=key", "socket=socket", "pid-file=pid", "log-file=log", "seed-file=seed")
        options = [f"--{name}={munge / file}" for name, file in (pair.split("=") for pair in files)]
        self._daemon("munged", "--foreground", *options)
        self._until(lambda: (munge / "socket").exists())
        conf = str(self.place / "slurm.conf")
        self._daemon("slurmctld", "-D", "-c", "-f", conf)
        for node in [f"n{number}" for number in range(1, NODES + 1)] + ["g1"]:
            self._daemon("slurmd", "-D", "-f", conf, "-N", node)
        self._until(self._all_idle)

    def stop(self) -> None:
        """Ends all jobs, then the daemons, last started first."""
        if len(self.daemons) > 1:  # more than munge: there is somebody to ask
            subprocess.run(["scancel", "--user", user()], env=self.environ, timeout=60, check=False)
            try:
                self._until(lambda: not self.run("squeue", "--noheader", "--states=R,CG,S,CF"))
            except AssertionError as error:
                print(f"jobs would not end: {error}", file=sys.stderr)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.place, ignore_errors=True)

    def _daemon(self, program: str, *arguments: str) -> None:
        with (self.place / "daemons.log").open("ab") as log:
            path = shutil.which(program, path=SEARCH_PATH)
            assert path is not None
            self.daemons.append(
                subprocess.Popen(
                    [path, *arguments],
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C at pytest must not take them from under stop()
                )
            )

    def _all_idle(self) -> bool:
        asked = ["sinfo", "--noheader", "--Node", "--format=%N %t"]
        done = subprocess.run(asked, env=self.environ, text=True, capture_output=True, timeout=60, check=False)
        return sorted(done.stdout.split()) == ["g1", "idle", "idle", "idle", "n1", "n2"]

    def _until(self, ready: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert all(daemon.poll() is None for daemon in self.daemons), self._logs()
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.05)

    def _logs(self) -> str:
        logs = [*self.place.glob("*.log"), *self.place.glob("munge/log")]
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


# The daemons are in sbin, which an ordinary user's PATH often lacks.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])


def user() -> str:
    """The name of who runs this, whatever LOGNAME says."""
    return pwd.getpwuid(os.getuid()).pw_name


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
