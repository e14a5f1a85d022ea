"""Signals that ask a run to stop: they are remembered and answered at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """Remembers the first SIGTERM, SIGUSR1 or SIGINT; after it a Ctrl-C (SIGINT) interrupts at once.

    Slurm sends SIGUSR1 before the time limit and SIGTERM at preemption, so those two never cut a save short.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
