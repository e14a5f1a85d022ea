"""The lock of a run directory: held by one process, and gone with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.runtime.locks import exclusive

# Holds the lock until it is killed, with a forked child as a checkpoint's writer is one.
HOLDER = """
import os, sys, time
from pathlib import Path
from megatron_lm_zh.runtime.locks import exclusive
with exclusive(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on") as caught, exclusive(tmp_path):
            pass
        assert len(str(caught.value).splitlines()) == 1
        holder.kill()
        holder.wait()
        with exclusive(tmp_path):  # although the child is still there
            os.kill(child, 0)
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_a_lock_is_free_after_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "run"):
            assert (tmp_path / "run/.lock").is_file()
