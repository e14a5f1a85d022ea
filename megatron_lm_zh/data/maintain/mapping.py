"""A function mapped over a stream by forked processes: results in order, few of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection
from typing import TypeVar

from megatron_lm_zh.data.forked import forked

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING = 4  # items that a worker has before it: enough that it never idles, and results held are few


def ordered_map(
    function: Callable[[Item], Result], items: Iterator[Item], workers: int
) -> Generator[Result, None, None]:
    """Results of ``function`` for ``items``, in their order; with one worker it runs here, without processes.

    Items go to the workers in turn and must be small (a few hundred bytes): sending one never waits.

    Raises:
        UserError: a worker died.
        Exception: whatever ``function`` raises.
    """
    if workers == 1:
        yield from map(function, items)
        return
    with forked(lambda item, _: function(item), workers) as running:
        waiting: deque[Connection] = deque()
        for turn, item in enumerate(items):
            connection = running.connections[turn % workers]
            running.send(connection, item)
            waiting.append(connection)
            if len(waiting) == workers * WAITING:
                yield running.receive(waiting.popleft())
        while waiting:
            yield running.receive(waiting.popleft())
