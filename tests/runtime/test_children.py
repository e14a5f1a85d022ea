"""Helper processes: they die with their parent, and a parent does not wait for a child that was killed."""

from __future__ import annotations

import subprocess
import sys
import time

PARENT = """
import multiprocessing, os, signal, sys
from megatron_lm_zh.runtime import children

def child(ending):
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3 if ending == "failed" else 0)

children.fail_with_children()
context = multiprocessing.get_context("fork")
process = context.Process(target=child, args=(sys.argv[1],))
process.start()
if context.Semaphore(0).acquire(timeout=3):  # what no child will ever release
    raise AssertionError
print("waited to the end")
"""


def run(ending: str) -> tuple[int, str, float]:
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PARENT, ending], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, time.monotonic() - begin


def test_a_killed_or_failed_child_ends_the_wait() -> None:
    for ending in ("killed", "failed"):
        code, out, _ = run(ending)
        assert (code, out) == (1, "")


def test_a_child_that_ends_well_does_not() -> None:
    code, out, seconds = run("well")
    assert (code, out) == (0, "waited to the end\n")
    assert seconds > 3
