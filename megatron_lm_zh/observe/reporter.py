"""The one object that training reports to: rows go to every sink and to the console."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from megatron_lm_zh.observe.console import Console
from megatron_lm_zh.observe.rows import ExpertsRow, TrainRow, ValidRow
from megatron_lm_zh.observe.sinks import Sink

logger = logging.getLogger(__name__)


class Reporter:
    """Hands each row to all sinks, then shows it; a rank that reports nothing has no sinks and no console.

    Args:
        experts: where the experts' load goes; the tables are too large for the other sinks.
    """

    def __init__(self, sinks: Sequence[Sink], console: Console | None, experts: Sink | None = None) -> None:
        self._sinks = tuple(sinks)
        self._console = console
        self._experts = experts

    def train(self, row: TrainRow) -> None:
        """Reports a log interval of training."""
        for sink in self._sinks:
            sink.write(row.to_json())
        if self._console:
            self._console.train(row)

    def valid(self, row: ValidRow) -> None:
        """Reports the evaluation of one source."""
        for sink in self._sinks:
            sink.write(row.to_json())
        if self._console:
            self._console.valid(row)

    def experts(self, row: ExpertsRow) -> None:
        """Reports the experts' load over a log interval."""
        if self._experts:
            self._experts.write(row.to_json())

    def note(self, text: str) -> None:
        """Says something in words: on the console and in this rank's log."""
        logger.info(text)
        if self._console:
            self._console.note(text)

    def flush(self) -> None:
        """Brings all rows to the disk; called before a checkpoint is complete, as resume needs the rows before it."""
        for sink in self._all_sinks():
            sink.flush()

    def close(self) -> None:
        """Closes every sink and the console, even when one of them fails."""
        with ExitStack() as stack:
            if self._console:
                stack.callback(self._console.close)
            for sink in self._all_sinks():
                stack.callback(sink.close)

    def _all_sinks(self) -> tuple[Sink, ...]:
        return (*self._sinks, self._experts) if self._experts else self._sinks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
