"""The launcher: starts the ranks of one machine, passes signals on, and lets no rank outlive its world."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

from megatron_lm_zh.runtime import children
from megatron_lm_zh.runtime.ranks import LOOPBACK

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_POLL_S = 0.02
_OWN_WORDS_S = 1.0  # after a failure: time for the other ranks to fail by themselves and say why
_GRACE_S = 5.0  # after SIGTERM: time to flush logs; a save cannot succeed without the lost rank
_TAIL_LINES = 15


def launch_local(command: Sequence[str], world: int, *, log_dir: Path | None, environ: Mapping[str, str]) -> int:
    """Runs `world` copies of a command as the ranks of one world on this machine and waits for them.

    Rank 0 writes to our stdout and stderr. Every other rank appends to ``log_dir/rank_XXXX.log``, or, without a
    log_dir, to a temporary file; when one of them fails first, the end of its output is shown. SIGTERM, SIGINT and
    SIGUSR1 are passed on to all ranks. A rank that fails ends the others. If this process dies, however it dies,
    its ranks are killed by the kernel (Linux). Must be called from the main thread.

    Args:
        command: program and arguments, the same for each rank.
        world: number of ranks.
        log_dir: directory for the logs of ranks 1 up; made if missing.
        environ: environment of the ranks, to which RANK, WORLD_SIZE and their kind are added. OMP_NUM_THREADS in it
            is kept; otherwise the ranks share this machine's cores evenly.

    Returns:
        0 when all ranks return 0, else the exit code of the rank that failed first (128 + n for signal n).
    """
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True)
    ranks: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        stack.callback(_stop, ranks, grace_s=0.0)  # whatever goes wrong below, nothing is left running
        stack.enter_context(_forwarding(ranks))
        logs = [stack.enter_context(_log(log_dir, rank)) for rank in range(1, world)]
        port = _free_port()
        for rank in range(world):
            log = logs[rank - 1] if rank else None
            ranks.append(_start(command, _rank_environ(environ, rank, world, port), log))
        failed = _wait(ranks)
        if failed is None:
            return 0
        _wait_all(ranks, _OWN_WORDS_S)
        code = ranks[failed].returncode
        user_knows = code > 0 and ranks[0].poll() == code  # from rank 0, which writes to our terminal
        _stop(ranks, grace_s=_GRACE_S)
        if not user_knows:
            _report(failed, code, logs[failed - 1] if failed else None, log_dir)
        return 128 - code if code < 0 else code


def _rank_environ(environ: Mapping[str, str], rank: int, world: int, port: int) -> dict[str, str]:
    # An outer torchrun's variables would otherwise be taken for the nearest launcher's.
    inherited = {name: value for name, value in environ.items() if not name.startswith("TORCHELASTIC_")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    inherited.setdefault("OMP_NUM_THREADS", str(max(1, cores // world)))
    return inherited | {
        "MLZH_LAUNCHED": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _start(command: Sequence[str], environ: Mapping[str, str], log: IO[bytes] | None) -> subprocess.Popen[bytes]:
    # A process group of its own keeps a terminal's Ctrl-C from reaching a rank twice, once from us and once from there.
    return subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log is not None else None,
        process_group=0,
        preexec_fn=partial(children.die_with, os.getpid()),
    )


@contextmanager
def _log(log_dir: Path | None, rank: int) -> Iterator[IO[bytes]]:
    """The file that takes a rank's output."""
    if log_dir is None:
        with tempfile.TemporaryFile() as file:
            yield file
    else:
        with (log_dir / f"rank_{rank:04d}.log").open("ab+") as file:
            yield file


@contextmanager
def _forwarding(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Passes signals on to the ranks that run by then."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(number)  # does nothing to a rank that has ended

    former = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Waits until a rank fails, and returns it, or until all have returned 0."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        time.sleep(_POLL_S)


def _wait_all(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> bool:
    """Waits at most `seconds` for all ranks to end; says whether they did."""
    deadline = time.monotonic() + seconds
    while any(rank.poll() is None for rank in ranks):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _stop(ranks: Sequence[subprocess.Popen[bytes]], *, grace_s: float) -> None:
    """Ends the ranks that still run, and what they have started: SIGTERM, and SIGKILL after the grace."""
    if grace_s:
        for rank in ranks:
            if rank.poll() is None:
                rank.terminate()
        _wait_all(ranks, grace_s)
    for rank in ranks:
        if rank.poll() is None:
            os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()


def _report(rank: int, code: int, log: IO[bytes] | None, log_dir: Path | None) -> None:
    """Says on our stderr how a rank failed, with the end of its log where it has one."""
    how = f"ended with exit code {code}"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"was killed by {names.get(-code, f'signal {-code}')}"
        if code == -signal.SIGKILL:
            how += ", as the kernel does when memory runs out"
    lines: list[str] = []
    if log is not None:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - 64 * 1024))
        lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        if log_dir is not None:
            how += f" ({log_dir / f'rank_{rank:04d}.log'})"
    print(f"rank {rank} {how}", *lines, sep=f"\n[rank {rank}] ", file=sys.stderr, flush=True)
