"""Forked workers: answers, errors, deaths."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from megatron_lm_zh.data.forked import forked
from megatron_lm_zh.data.maintain.mapping import ordered_map
from megatron_lm_zh.errors import UserError


def work(item: int, tell: Callable[[Any], None]) -> object:
    if item == 13:
        raise ValueError("unlucky")
    if item == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 7:
        return UserError("an answer as any other")
    tell(-item)
    return os.getpid(), item * item


def test_workers_tell_and_answer() -> None:
    with forked(work, 2) as workers:
        for connection, item in zip(workers.connections, (3, 4), strict=True):
            workers.send(connection, item)
        told = [workers.receive(connection) for connection in workers.connections]
        answers = [workers.receive(connection) for connection in workers.connections]
        pids = {pid for pid, _ in answers}
        assert told == [-3, -4]
        assert [square for _, square in answers] == [9, 16]
        assert len(pids) == 2
        assert os.getpid() not in pids
        workers.send(workers.connections[0], 7)
        assert isinstance(workers.receive(workers.connections[0]), UserError)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_errors_are_raised_by_the_parent() -> None:
    with forked(work, 1) as workers:
        workers.send(workers.connections[0], 13)
        with pytest.raises(ValueError, match="unlucky"):
            workers.receive(workers.connections[0])
        workers.send(workers.connections[0], 2)  # the worker lives on
        assert workers.receive(workers.connections[0]) == -2


def test_a_death_is_one_line() -> None:
    with forked(work, 2, mend="try again") as workers:
        workers.send(workers.connections[1], 9)
        with pytest.raises(UserError, match="a worker process died.*try again"):
            workers.receive(workers.connections[1])
        workers.send(workers.connections[0], 2)  # the other does not mind
        assert workers.receive(workers.connections[0]) == -2


@pytest.mark.parametrize("workers", [1, 3])
def test_a_map_keeps_the_order(workers: int) -> None:
    assert list(ordered_map(lambda item: item * 2, iter(range(100)), workers)) == list(range(0, 200, 2))
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 // (50 - item), iter(range(100)), workers))
