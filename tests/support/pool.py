"""Worlds of rank processes for many test cases: importing torch and megatron is paid once."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

# Both together load all that a rank needs, which is a second of work that need not be done by every one.
WHAT_RANKS_IMPORT = ("megatron_lm_zh.parity.record", "megatron_lm_zh.train.pretrain")


class RankPool:
    """Runs a function on the ranks 0..n-1 of a fresh world of n processes, n up to `size`.

    One process imports everything and is forked for each rank of each world: gloo's threads and what megatron-core
    keeps of a world end with its processes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._prepared: tuple[Any, Connection] | None = None

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
        connection = self._start()
        try:
            connection.send((function, world, _free_port(), arguments, timeout_s))
            answer = connection.recv()
        except BaseException:  # an interrupt: an answer that comes later must not be taken for the next call's
            self.close()
            raise
        if isinstance(answer, TimeoutError):
            raise answer
        failures = [rank for rank in answer if isinstance(rank, _Failure)]
        if failures:
            raise RuntimeError("\n".join(failure.text for failure in failures))
        return [pickle.loads(rank) for rank in answer]

    def close(self) -> None:
        """Ends the processes."""
        if self._prepared is None:
            return
        process, connection = self._prepared
        connection.close()
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()
        self._prepared = None

    def __enter__(self) -> RankPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> Connection:
        if self._prepared is None:
            context = multiprocessing.get_context("spawn")
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            mine, theirs = context.Pipe()
            # Not a daemon: those may not start processes. Our end of the pipe ends it.
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            theirs.close()
            self._prepared = process, mine
        return self._prepared[1]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _serve(connection: Connection) -> None:
    """The process that is forked: prepares the engine once, then runs world after world until the pipe is closed."""
    import torch

    from megatron_lm_zh.runtime import engine

    engine.threads(1)
    # A process that has spoken to a GPU cannot be forked: there each rank is a new one that prepares itself.
    gpu = torch.cuda.is_available()
    device = None if gpu else engine.prepare()
    if not gpu:
        for name in WHAT_RANKS_IMPORT:
            importlib.import_module(name)
    context = multiprocessing.get_context("spawn" if gpu else "fork")
    while True:
        try:
            function, world, port, arguments, timeout_s = connection.recv()
        except EOFError:
            return
        connection.send(_run_world(context, device, function, world, port, arguments, timeout_s))


def _run_world(
    context: Any,
    device: Any,
    function: Callable[..., Any],
    world: int,
    port: int,
    arguments: tuple[Any, ...],
    timeout_s: float | None,
) -> list[Any] | TimeoutError:
    """Every rank's answer, pickled; a TimeoutError where some did not answer in time."""
    ranks: dict[Connection, tuple[int, Any]] = {}
    for rank in range(world):
        mine, theirs = context.Pipe()
        process = context.Process(target=_run_rank, args=(theirs, device, function, rank, world, port, arguments))
        process.start()
        theirs.close()
        ranks[mine] = rank, process
    answers: list[Any] = [None] * world
    waiting = dict(ranks)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while waiting:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait(list(waiting), timeout=left)
        if not ready or any(isinstance(answer, _Failure) for answer in answers):
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            rank, _ = waiting.pop(connection)
            try:
                answers[rank] = connection.recv()
            except EOFError:
                answers[rank] = _Failure(f"rank {rank} of {world} ended without an answer")
    for connection, (_, process) in ranks.items():
        if connection in waiting:
            process.kill()
        process.join()
        connection.close()
    late = sorted(rank for rank, _ in waiting.values())
    if any(isinstance(answer, _Failure) for answer in answers):
        return [answer for answer in answers if isinstance(answer, _Failure)]
    return TimeoutError(f"ranks {late} of {world} did not answer in {timeout_s} s") if late else answers


def _run_rank(
    connection: Connection,
    device: Any,
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    arguments: tuple[Any, ...],
) -> None:
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.children import die_with
    from megatron_lm_zh.runtime.ranks import Ranks

    die_with(os.getppid())
    place = Ranks(rank, world, rank, world, 0, "127.0.0.1", port, "mlzh")
    try:
        # By value: as an object of a pipe, a tensor would be a file that ends with this process.
        answer: Any = pickle.dumps(function(place, device or engine.prepare(), *arguments))
    except BaseException:
        answer = _Failure(f"rank {rank} of {world}:\n{traceback.format_exc()}")
    connection.send(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
