"""A writer that hangs in its fork is forked again; one that keeps hanging is an error, not a hang."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
import os, sys, time
from pathlib import Path

from megatron_lm_zh.runtime import engine

engine.prepare()
import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megatron_lm_zh.checkpoint import writer

directory, hangs = Path(sys.argv[1]), int(sys.argv[2])
writer.START_S, writer.STARTS = 1.0, 3
dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
forks = 0

def before():
    global forks
    forks += 1

def in_child():
    if forks <= hangs:
        time.sleep(600)  # where CPython waits for a lock that a lost thread held

os.register_at_fork(before=before, after_in_child=in_child)

def write(path):
    path.write_text("written")

queue = writer.WriterQueue(persistent=False)
try:
    queue.schedule_async_request(AsyncRequest(write, (directory / "file",), []))
    queue.maybe_finalize_async_calls(blocking=True)
    print((directory / "file").read_text(), forks)
except OSError as error:
    print(error)
"""


def run(directory: Path, hangs: int) -> str:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(directory), str(hangs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip().splitlines()[-1]


def test_a_writer_that_hangs_at_its_start_is_started_again(tmp_path: Path) -> None:
    assert run(tmp_path, hangs=2) == "written 3"


def test_one_that_always_hangs_is_an_error(tmp_path: Path) -> None:
    assert run(tmp_path, hangs=99) == "the checkpoint writer hung at its start 3 times"
    assert not (tmp_path / "file").exists()
