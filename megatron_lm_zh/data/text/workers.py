"""Tasks spread over workers: forked processes of this machine, or the ranks of an MPI job."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from megatron_lm_zh import compat
from megatron_lm_zh.data.forked import forked
from megatron_lm_zh.data.text.tokenizing import Recipe, Task, Tell, Told, encoder_of
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.encoders import Encoder

Answer = dict[str, Any] | UserError
OnTold = Callable[[str, Told], None]
MEND = "use fewer --workers; the same command goes on from the shards that are done"


class Executor(Protocol):
    """Runs tasks and answers in the order in which they are done."""

    def run(self, tasks: Iterator[Task], recipe: Recipe, on_told: OnTold) -> Generator[tuple[Task, Answer]]:
        """What each task returned, or the `UserError` it raised. Tasks start in their order; closing ends all.

        Args:
            tasks: taken one by one when a worker is free.
            recipe: for the tasks.
            on_told: called with a task's name and how far it is.
        """
        ...


class LocalExecutor:
    """Forked processes, which share the encoder without loading it; a single worker or task needs none."""

    def __init__(self, workers: int, encoder: Encoder | None = None) -> None:
        self.workers = workers
        self._encoder = encoder

    def run(self, tasks: Iterator[Task], recipe: Recipe, on_told: OnTold) -> Generator[tuple[Task, Answer]]:
        """See `Executor`."""
        work = functools.partial(_do, recipe=recipe, encoder=self._get_encoder)
        begin = list(itertools.islice(tasks, 2))
        tasks = itertools.chain(begin, tasks)
        if self.workers == 1 or len(begin) < 2:
            for task in tasks:
                yield task, work(task, tell=functools.partial(on_told, task.name))
            return
        with closing(_forked(work, tasks, self.workers, on_told)) as answers:
            yield from answers

    def _get_encoder(self) -> Encoder:
        assert self._encoder is not None, "no task of this job encodes"
        return self._encoder


class MpiExecutor:
    """The other ranks of this MPI job; each loads the tokenizer for itself."""

    def __init__(self, pool: Any, workers: int) -> None:
        self._pool = pool
        self.workers = workers

    def run(self, tasks: Iterator[Task], recipe: Recipe, on_told: OnTold) -> Generator[tuple[Task, Answer]]:
        """See `Executor`; ranks tell nothing between a task's begin and its end."""
        running: dict[concurrent.futures.Future[Answer], Task] = {}
        more = True
        try:
            while True:
                while more and len(running) < 2 * self.workers:
                    task = next(tasks, None)
                    if task is None:
                        more = False
                    else:
                        running[self._pool.submit(_do_far, task, recipe)] = task
                if not running:
                    return
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()


@contextmanager
def mpi_executor() -> Iterator[MpiExecutor | None]:
    """The executor in the rank that leads; None in the others, once they have served it to its end.

    Raises:
        UserError: mpi4py is missing.
    """
    futures = compat.optional("mpi4py.futures", "--executor mpi", "mpi")
    mpi = compat.optional("mpi4py.MPI", "--executor mpi", "mpi")
    world = mpi.COMM_WORLD
    context: AbstractContextManager[Any] = futures.MPICommExecutor(world, root=0)
    with context as pool:
        if pool is None:
            yield None
        else:
            yield MpiExecutor(pool, max(1, world.Get_size() - 1))


def _quiet(told: Told) -> None:
    """Tells nobody."""


def _do_far(task: Task, recipe: Recipe) -> Answer:
    return _do(task, recipe=recipe, encoder=functools.partial(encoder_of, recipe), tell=_quiet)


def _do(task: Task, *, recipe: Recipe, encoder: Callable[[], Encoder], tell: Tell) -> Answer:
    try:
        return task.run(recipe, encoder, tell)
    except UserError as error:  # whether it is the job's first error is the leader's to know
        return error


def _forked(
    work: Callable[..., Answer], tasks: Iterator[Task], workers: int, on_told: OnTold
) -> Generator[tuple[Task, Answer]]:
    with forked(lambda task, tell: work(task, tell=tell), workers, MEND) as running:
        busy: dict[Connection, Task] = {}

        def give(connection: Connection) -> None:
            task = next(tasks, None)
            if task is not None:
                busy[connection] = task
                running.send(connection, task)

        for idle in running.connections:
            give(idle)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                answer = running.receive(connection)
                if isinstance(answer, Told):
                    on_told(busy[connection].name, answer)
                else:
                    done = busy.pop(connection)
                    give(connection)
                    yield done, answer
