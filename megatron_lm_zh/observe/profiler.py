"""Traces some training steps with torch's profiler and, where the device can, records a memory snapshot of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.profiler

MemorySnapshot = Callable[[Path], AbstractContextManager[None]]
"""Records device memory while the context is open and writes the record to the path when it closes."""


class StepProfiler:
    """Profiles steps a to b, both included; costs nothing in any other step.

    Written are ``trace_rank_0000_steps_10_12.json.gz`` (chrome://tracing, Perfetto) and, with ``memory_snapshot``,
    ``memory_rank_0000_steps_10_12.pickle`` (pytorch.org/memory_viz). A run that ends or fails between a and b writes
    the steps until then, and the file's name says which.

    Args:
        steps: first and last step to profile; None profiles nothing.
        directory: where the files go; made when needed.
        rank: global rank, part of the files' names.
        memory_snapshot: the device's memory recorder; None where it has none.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        directory: Path,
        rank: int,
        *,
        memory_snapshot: MemorySnapshot | None = None,
    ) -> None:
        self._steps = steps
        self._directory = directory
        self._rank = rank
        self._memory_snapshot = memory_snapshot
        self._running = ExitStack()
        self._first: int | None = None
        self._last = 0

    @contextmanager
    def step(self, n: int) -> Iterator[None]:
        """Put around step ``n``; the trace names it ``step n``."""
        if self._steps is None or not self._steps[0] <= n <= self._steps[1]:
            yield
            return
        if self._first is None:
            self._start(n)
        self._last = n
        with torch.profiler.record_function(f"step {n}"):
            yield
        if n == self._steps[1]:
            self.close()

    def close(self) -> None:
        """Ends a profile under way and writes it; does nothing when there is none."""
        self._running.close()
        self._first = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, first: int) -> None:
        self._first = first
        self._directory.mkdir(parents=True, exist_ok=True)
        # Closed in reverse: the profiler stops first, then the trace is written, then the memory record.
        if self._memory_snapshot is not None:
            partial = self._partial("memory", "pickle")
            self._running.callback(self._finish, partial, "memory", "pickle")
            self._running.enter_context(self._memory_snapshot(partial))
        # By default the profiler records what this build of torch supports: the CPU, and CUDA where there is one.
        profile = torch.profiler.profile()
        self._running.callback(self._write_trace, profile)
        self._running.enter_context(profile)

    def _write_trace(self, profile: torch.profiler.profile) -> None:
        partial = self._partial("trace", "json.gz")
        profile.export_chrome_trace(str(partial))
        self._finish(partial, "trace", "json.gz")

    def _partial(self, kind: str, suffix: str) -> Path:
        return self._directory / f".{kind}_rank_{self._rank:04d}.partial.{suffix}"

    def _finish(self, partial: Path, kind: str, suffix: str) -> None:
        partial.replace(self._directory / f"{kind}_rank_{self._rank:04d}_steps_{self._first}_{self._last}.{suffix}")
