"""A lock that keeps a second job out of a live run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from megatron_lm_zh.errors import UserError


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Holds `directory`/.lock for this process; the kernel frees it when the process ends, however it ends.

    Raises:
        UserError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    with path.open("a+") as file:
        try:
            # Not flock(): a forked checkpoint writer would share it and keep it after its rank was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"the run directory is in use by {holder}",
                where=str(directory),
                mend="wait for that job to end, or give this one another run.dir",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
