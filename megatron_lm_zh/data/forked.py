"""Forked worker processes, each at its own pipe, that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.runtime.children import die_with

Work = Callable[[Any, Callable[[Any], None]], Any]
"""What a worker does with an item: it may tell something on the way, and what it returns is told last."""


@dataclass(frozen=True)
class _Raised:
    """What the work raised instead of returning."""

    error: Exception


@dataclass(frozen=True)
class Workers:
    """Running workers.

    Attributes:
        connections: the pipe to each.
        mend: what a user can do where one dies.
    """

    connections: tuple[Connection, ...]
    mend: str

    def send(self, connection: Connection, item: object) -> None:
        """Gives a worker an item.

        Raises:
            UserError: it died.
        """
        try:
            connection.send(item)
        except BrokenPipeError as error:
            raise self._died() from error

    def receive(self, connection: Connection) -> Any:
        """What a worker tells or returns next.

        Raises:
            UserError: it died.
            Exception: whatever the work raised.
        """
        try:
            answer = connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    def _died(self) -> UserError:
        return UserError("a worker process died, most likely for want of memory", mend=self.mend)


@contextmanager
def forked(work: Work, count: int, mend: str = "use fewer --workers") -> Iterator[Workers]:
    """Starts workers, which have ``work`` and what it holds without pickling it; the block's end kills them."""
    context = multiprocessing.get_context("fork")
    connections: list[Connection] = []
    processes = []
    try:
        for _ in range(count):
            here, there = context.Pipe()
            others = (*connections, here)
            process = context.Process(target=_serve, args=(work, there, others, os.getpid()), daemon=True)
            process.start()
            there.close()
            connections.append(here)
            processes.append(process)
        yield Workers(tuple(connections), mend)
    finally:
        for process in processes:
            process.kill()
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


def _serve(work: Work, connection: Connection, others: tuple[Connection, ...], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    die_with(parent)
    for other in others:  # so that each pipe closes with the parent
        other.close()
    while True:
        try:
            item = connection.recv()
            try:
                answer = work(item, connection.send)
            except Exception as error:  # raised again by the parent
                answer = _Raised(error)
            connection.send(answer)
        except (EOFError, ConnectionError):  # the parent has gone
            return
