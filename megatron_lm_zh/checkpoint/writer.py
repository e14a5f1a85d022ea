"""The process that writes a rank's checkpoint files: it starts for sure, hashes them, and dies with its rank."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import select
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest, TemporalAsyncCaller

from megatron_lm_zh.checkpoint.manifest import record
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.runtime import children

log = logging.getLogger(__name__)

CHECKSUMS = ".checksums_{rank}.json"

START_S = 10.0
STARTS = 5


class WriterQueue(AsyncCallsQueue):
    """megatron-core's queue of asynchronous saves, with writers that are seen to start."""

    def _get_async_caller(self) -> TemporalAsyncCaller:
        return _SureCaller()


class _SureCaller(TemporalAsyncCaller):
    """Forks the writer again when it does not report within START_S seconds.

    A fork of a process with threads can hang in the child before its first line: a collective's thread that is just
    entering Python holds an interpreter lock, which the child waits for (CPython 3.11). Nothing is written by then.
    """

    def schedule_async_call(self, async_req: AsyncRequest) -> None:
        if async_req.async_fn is None:
            return
        for _ in range(STARTS):
            reader, writer = os.pipe()
            try:
                reporting = partial(_report_start, writer, async_req.async_fn)
                super().schedule_async_call(async_req._replace(async_fn=reporting))
                started = select.poll()  # select() takes no descriptor above 1023
                started.register(reader, select.POLLIN)
                if started.poll(START_S * 1000):
                    return
            finally:
                os.close(reader)
                os.close(writer)
            log.warning("the checkpoint writer hung at its start and is started again")
            self.close(abort=True)
        raise OSError(f"the checkpoint writer hung at its start {STARTS} times")

    def close(self, abort: bool = False) -> None:
        process = self.process
        super().close(abort=abort)
        if abort and process is not None:
            process.join()


def with_checksums(write: Callable[..., None], directory: Path, rank: int) -> Callable[..., None]:
    """The writer's function, followed, in the writer's own process, by the checksums of the files it wrote."""
    parent = os.getpid()

    def write_and_hash(*arguments: Any, **options: Any) -> None:
        # A writer that outlives a killed rank would write into the checkpoint that the next attempt makes.
        children.die_with(parent)
        children.fail_with_children()
        os.register_at_fork(after_in_child=partial(children.die_with, os.getpid()))
        write(*arguments, **options)
        records = {path.name: asdict(record(path)) for path in directory.glob(f"__{rank}_*")}
        with contextlib.suppress(UserError):  # a full disk: the write itself has failed and says so, or rank 0 reads
            write_bytes(directory / CHECKSUMS.format(rank=rank), json.dumps(records).encode())

    return write_and_hash


def start_results_queue() -> None:
    """Starts the queue over which writers report to their rank, as megatron-core does, but in a process that is safe.

    megatron-core's own outlives a rank that is killed, and dies of the signal that asks a job step to stop and save.
    """
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(initializer=children.serve, initargs=(os.getpid(),))
        filesystem_async._results_queue = manager.Queue()


def _report_start(pipe: int, write: Callable[..., None], *arguments: Any, **options: Any) -> None:
    os.write(pipe, b"1")
    os.close(pipe)
    write(*arguments, **options)
