"""Processes that a rank starts: they die with it, however it dies, and leave the signals of the run to it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

import psutil

_PR_SET_PDEATHSIG = 1
# Loaded here, since between fork and exec there may be system calls only.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int) -> None:
    """Has the kernel kill this process when `parent`, which started it, is gone (Linux; elsewhere nothing)."""
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def fail_with_children() -> None:
    """Ends this process as soon as a child of it has failed or was killed, instead of waiting for its answer for ever.

    megatron-core's checkpoint writer waits so for processes of its own, which the kernel may kill for their memory.
    """

    def look(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            # Looks without collecting: who started the child still waits for it.
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_status != 0:
                os._exit(1)

    signal.signal(signal.SIGCHLD, look)


def serve(parent: int) -> None:
    """For a helper that lives as long as `parent`: a signal sent to all processes of a job step does not end it.

    Slurm sends SIGUSR1 and SIGTERM to every process of a step; the rank still needs the helper to save.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)
