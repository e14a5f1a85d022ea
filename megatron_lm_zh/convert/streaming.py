"""Writes the pieces of a plan, several at a time, in bounded memory, and knows which files are done."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_lm_zh.convert.direct import DirectWriter
from megatron_lm_zh.convert.plan import Job, Piece, Plan, PlannedFile
from megatron_lm_zh.convert.records import raw
from megatron_lm_zh.files import sync_directory
from megatron_lm_zh.runtime.allocator import large_blocks_go_back

_SPARE_MEMORY = 32 << 20
"""Small tensors share at least so many bytes, whatever the largest tensor is."""
_TICK = 0.2  # seconds between two looks at how far the work is


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    done: int
    """Bytes that stand in files."""
    total: int
    before: int
    """Of those done, what an earlier attempt had written."""
    seconds: float
    """Since this attempt began."""

    @property
    def bytes_per_second(self) -> float:
        """Speed of this attempt."""
        return (self.done - self.before) / max(self.seconds, 1e-9)


def default_workers() -> int:
    """Cores that this process may use, at most 8: more wait for the disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def write_pieces(
    directory: Path,
    plan: Plan,
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    done: Set[str] = frozenset(),
    on_file: Callable[[str], None] = lambda name: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Runs the jobs in threads and writes each piece straight to its place; a file is flushed when it is whole.

    The jobs that run at a time never ask for more memory than the largest of them does alone, or a few megabytes.

    Args:
        jobs: they make every piece of the plan once.
        workers: threads; None: `default_workers`.
        done: files that are there already; jobs whose pieces are all in those are left out.
        on_file: called with the name of a file when it is whole and on the disk.
        on_progress: called now and then from the calling thread.

    Raises:
        OSError: a file cannot be written.
        UserError: what a job raises.
    """
    work = _Work(directory, plan, done, on_file)
    waiting = [job for job in jobs if any(piece.file not in done for piece in job.pieces)]
    budget = _Budget(max([_SPARE_MEMORY, *(job.memory for job in jobs)]))
    source = iter(waiting)
    threads = workers or default_workers()
    lock = threading.Lock()
    started = time.monotonic()

    def run_jobs() -> None:
        writer = DirectWriter()
        while not budget.stopped:
            with lock:
                job = next(source, None)
            if job is None:
                return
            with budget.taken(job.memory) as go_on:
                if go_on:
                    work.do(job, writer)

    def report() -> None:
        on_progress(Progress(work.bytes_done, plan.num_bytes, work.bytes_before, time.monotonic() - started))

    with large_blocks_go_back(), ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            futures = [pool.submit(run_jobs) for _ in range(threads)]
            while True:
                ended, running = wait(futures, timeout=_TICK, return_when=FIRST_EXCEPTION)
                report()
                for future in ended:
                    future.result()
                if not running:
                    break
        finally:
            budget.stop()
    missing = [file.name for file in plan.files if file.name not in work.whole]
    assert not missing, f"never whole: {missing[:3]}"


class _Work:
    """The files on the disk and how much of each is still to come."""

    def __init__(self, directory: Path, plan: Plan, done: Set[str], on_file: Callable[[str], None]) -> None:
        self._directory, self._encode, self._on_file = directory, plan.encode, on_file
        self._files = {file.name: file for file in plan.files}
        self._left = Counter(piece.file for piece in plan.pieces if piece.file not in done)
        self._lock = threading.Lock()
        self.whole = set(done)
        self.bytes_before = sum(file.num_bytes for file in plan.files if file.name in done)
        self.bytes_done = self.bytes_before
        for file in plan.files:
            if file.name not in done:
                self._begin(file)

    def _begin(self, file: PlannedFile) -> None:
        with (self._directory / file.name).open("wb") as stream:
            stream.write(file.header)
            stream.truncate(file.num_bytes)
        self.bytes_done += len(file.header)
        if not self._left[file.name]:
            self._finish(file.name)

    def do(self, job: Job, writer: DirectWriter) -> None:
        """Makes the pieces of a job and writes those whose file is not done."""
        made = iter(job.compute())
        for piece in job.pieces:
            blocks = next(made)
            if piece.file not in self.whole:
                self._write(piece, blocks, writer)
                with self._lock:
                    self.bytes_done += piece.length
                    self._left[piece.file] -= 1
                    is_last = not self._left[piece.file]
                if is_last:
                    self._finish(piece.file)

    def _write(self, piece: Piece, blocks: Sequence[Tensor], writer: DirectWriter) -> None:
        shape = piece.spec.shape if piece.part is None else piece.spec.shape[1:]
        assert {block.dtype for block in blocks} == {piece.spec.dtype}, f"{piece.key} is not as planned"
        assert {block.shape[1:] for block in blocks} == {shape[1:]}, f"{piece.key} is not as planned"
        assert sum(block.nbytes for block in blocks) == piece.spec.num_bytes, f"{piece.key} is not as planned"
        buffers = self._encode(piece.spec, [raw(block.contiguous()) for block in blocks])
        assert sum(map(len, buffers)) == piece.length, f"{piece.key} is not as long as planned"
        writer.write(self._directory / piece.file, piece.offset, buffers)

    def _finish(self, name: str) -> None:
        sync_directory(self._directory / name)  # flushes a file as well as a directory
        with self._lock:
            self.whole.add(name)
            self._on_file(name)


class _Budget:
    """Lets jobs begin while their memory fits; one that is larger than the rest waits until it is alone."""

    def __init__(self, total: int) -> None:
        self._free, self._total = total, total
        self._changed = threading.Condition()
        self.stopped = False

    @contextmanager
    def taken(self, memory: int) -> Iterator[bool]:
        """Holds so much memory, once it is free; yields False if the work was stopped meanwhile."""
        memory = min(memory, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._free >= memory)
            self._free -= memory
        try:
            yield not self.stopped
        except BaseException:
            self.stop()
            raise
        finally:
            with self._changed:
                self._free += memory
                self._changed.notify_all()

    def stop(self) -> None:
        """Lets no further job begin."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
