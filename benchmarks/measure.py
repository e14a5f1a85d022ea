"""Times training loops against each other: each in a process of its own, taking turns block by block."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

_WARM_UP = 4


@dataclass(frozen=True)
class Rules:
    """How the loops are compared."""

    blocks: int
    steps: int
    threads: int
    cpu_time: bool

    def __str__(self) -> str:
        clock = "processor" if self.cpu_time else "wall"
        return f"{self.blocks} turns of {self.steps} steps, {self.threads} threads, {clock} time"


def read_rules(description: str | None) -> Rules:
    """The rules from the command line."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--blocks", type=int, default=9, help="turns of each loop")
    parser.add_argument("--steps", type=int, default=4, help="steps in one turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor time in place of wall time: a busy machine")
    return Rules(**vars(parser.parse_args()))


class Turns:
    """The loop's side: `next_step()` at the start of every step measures it, and waits at the end of a block."""

    def __init__(self, connection: Connection, *, cpu_time: bool) -> None:
        self._connection = connection
        self._clock = time.process_time if cpu_time else time.perf_counter
        self._asked = 0
        self._times: list[float] = []
        self._started: float | None = None

    def next_step(self) -> None:
        """Ends the step before and starts the next one; raises SystemExit once nobody asks for more."""
        if self._started is not None:
            self._times.append(self._clock() - self._started)
        if len(self._times) == self._asked:
            try:
                if self._times:
                    self._connection.send(self._times)
                self._asked = self._connection.recv()
            except EOFError:
                raise SystemExit from None
            self._times = []
        self._started = self._clock()


TrainingLoop = Callable[[Turns, int, str, Path], None]
"""Trains for ever in the given number of threads, the given dtype and a directory, taking its turns."""


class Contestant:
    """The referee's side of one loop."""

    def __init__(self, loop: TrainingLoop, rules: Rules, dtype: str, directory: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (loop, theirs, rules, dtype, directory)
        self._process = context.Process(target=_train, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def block(self, steps: int) -> list[float]:
        """Lets the loop take some steps; their times in seconds."""
        self._connection.send(steps)
        times: list[float] = self._connection.recv()
        return times

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()


def _train(loop: TrainingLoop, connection: Connection, rules: Rules, dtype: str, directory: Path) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # the table alone is shown
        loop(Turns(connection, cpu_time=rules.cpu_time), rules.threads, dtype, directory)


@dataclass(frozen=True)
class Times:
    """Step times of one loop, block by block, in seconds."""

    blocks: Sequence[Sequence[float]]

    @property
    def median(self) -> float:
        """Median over all steps."""
        return statistics.median(time for block in self.blocks for time in block)

    def over(self, other: Times) -> tuple[float, float, float]:
        """This loop's time over another's: ratio of the medians, smallest and largest ratio of neighbouring blocks."""
        ratios = [
            statistics.median(mine) / statistics.median(theirs)
            for mine, theirs in zip(self.blocks, other.blocks, strict=True)
        ]
        return self.median / other.median, min(ratios), max(ratios)


def take_turns(loops: Mapping[str, TrainingLoop], rules: Rules, dtype: str, directory: Path) -> dict[str, Times]:
    """Lets one loop at a time run a block of steps, the order reversed at every round."""
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Contestant(loop, rules, dtype, directory)) for name, loop in loops.items()
        }
        for contestant in contestants.values():
            contestant.block(_WARM_UP)
        return _rounds(contestants, rules)


def _rounds(contestants: Mapping[str, Contestant], rules: Rules) -> dict[str, Times]:
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(rules.blocks):
        for name in order:
            times[name].append(contestants[name].block(rules.steps))
        order.reverse()
    return {name: Times(measured) for name, measured in times.items()}


def machine() -> str:
    """The machine in one line, with its load: other work on it makes every figure worth less."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; "
        f"torch {torch.__version__}; load {load:.1f} before the start"
    )


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
