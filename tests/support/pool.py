"""A pool of rank processes that live through many test cases: importing torch and megatron is paid once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any


class RankPool:
    """Runs a function on the ranks 0..n-1 of a fresh world of n processes, n up to `size`; starts what it needs."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._workers: list[tuple[Any, Connection]] = []

    def run(
        self, world: int, function: Callable[..., Any], *arguments: Any, timeout_s: float | None = None
    ) -> list[Any]:
        """Calls ``function(ranks, device, *arguments)`` on every rank and returns what they return, in rank order.

        `function` must be importable by name; it gets a `Ranks` and the prepared `Device`, and sets process groups up
        itself. A rank's exception is raised here as a RuntimeError with the rank's traceback.

        Args:
            timeout_s: seconds after which a world that has not answered is killed, with a TimeoutError.
        """
        assert world <= self._size
        self._start(world)
        port = _free_port()
        for rank in range(world):
            self._workers[rank][1].send((function, rank, world, port, arguments))
        try:
            answers = self._answers(world, timeout_s)
        except BaseException:  # a time-out: answers that come later must not be taken for the next call's
            self.close(grace_s=0.0)
            raise
        failures = [answer for answer in answers if isinstance(answer, _Failure)]
        if failures:
            self.close()  # a world that broke half-way leaves collectives behind: start afresh
            raise RuntimeError("\n".join(failure.text for failure in failures))
        return answers

    def close(self, grace_s: float = 5.0) -> None:
        """Ends the processes, by force those that have not ended by themselves after `grace_s` seconds."""
        for _, connection in self._workers:
            connection.close()
        deadline = time.monotonic() + grace_s
        for process, _ in self._workers:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._workers = []

    def __enter__(self) -> RankPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self, world: int, timeout_s: float | None) -> list[Any]:
        waiting = {self._workers[rank][1]: rank for rank in range(world)}
        answers: list[Any] = [None] * world
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait(list(waiting), timeout=left)
            if not ready:
                raise TimeoutError(f"ranks {sorted(waiting.values())} of {world} did not answer in {timeout_s} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                answers[waiting.pop(connection)] = connection.recv()
        return answers

    def _start(self, world: int) -> None:
        context = multiprocessing.get_context("spawn")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        while len(self._workers) < world:
            mine, theirs = context.Pipe()
            # Not a daemon: those may not start the processes that write a checkpoint. Our end of the pipe ends them.
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            theirs.close()
            self._workers.append((process, mine))


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _serve(connection: Connection) -> None:
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.ranks import Ranks

    engine.threads(1)
    device = engine.prepare()
    while True:
        try:
            function, rank, world, port, arguments = connection.recv()
        except EOFError:
            return
        place = Ranks(rank, world, rank, world, 0, "127.0.0.1", port, "mlzh")
        try:
            answer = function(place, device, *arguments)
        except BaseException:
            answer = _Failure(f"rank {rank} of {world}:\n{traceback.format_exc()}")
        connection.send(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
