"""The reporter: every sink gets every row, and all are closed whatever happens."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from megatron_lm_zh.observe.console import Console, ConsoleLine
from megatron_lm_zh.observe.reporter import Reporter
from megatron_lm_zh.observe.rows import ExpertsRow, TrainRow, ValidRow
from megatron_lm_zh.observe.sinks import open_experts_sink

TRAIN = TrainRow(
    step=1, lm_loss=5.0, grad_norm=1.0, lr=1e-3, tokens=8, tokens_per_s=8.0, step_time_s=1.0, attempt=1, memory_gb=0.1
)
VALID = ValidRow.from_totals(1, "zh", nats=5.0, tokens=1, text_bytes=3, text_chars=1)


class ListSink:
    """Keeps rows; fails on close where asked."""

    def __init__(self, fails: bool = False) -> None:
        self.rows: list[dict] = []
        self.flushed = False
        self.closed = False
        self.fails = fails

    def write(self, row: dict) -> None:
        self.rows.append(row)

    def flush(self) -> None:
        self.flushed = True

    def close(self) -> None:
        self.closed = True
        if self.fails:
            raise OSError("no connection")


def test_every_sink_and_the_console_get_every_row(caplog: pytest.LogCaptureFixture):
    first, second, stream = ListSink(), ListSink(), io.StringIO()
    with (
        caplog.at_level(logging.INFO, "megatron_lm_zh"),
        Reporter([first, second], Console(ConsoleLine(10, 80), stream, total_steps=10)) as reporter,
    ):
        reporter.train(TRAIN)
        reporter.valid(VALID)
        reporter.note("saved 100% of it")
        reporter.flush()
    assert first.rows == second.rows == [TRAIN.to_json(), VALID.to_json()]
    assert first.flushed
    assert first.closed
    assert second.closed
    assert stream.getvalue().splitlines()[2] == "saved 100% of it"
    assert "saved 100% of it" in caplog.text


def test_the_experts_load_goes_to_its_own_file(tmp_path: Path):
    sink, table = ListSink(), ListSink()
    row = ExpertsRow(step=1, load={0: [1.0]})
    with Reporter([sink], None, table) as reporter:
        reporter.experts(row)
        reporter.flush()
    assert (sink.rows, table.rows) == ([], [row.to_json()])
    assert table.flushed and table.closed
    Reporter([], None).experts(row)  # other ranks have no file

    for step in (1, 2):
        file = open_experts_sink(tmp_path, resume_step=1)
        file.write(ExpertsRow(step=2, load={0: [float(step)]}).to_json())
        file.close()
    assert (tmp_path / "experts.jsonl").read_text() == '{"kind": "experts", "step": 2, "load": {"0": [2.0]}}\n'


def test_one_sink_that_fails_to_close_does_not_keep_the_others_open():
    sinks = [ListSink(), ListSink(fails=True), ListSink()]
    with pytest.raises(OSError, match="no connection"):
        Reporter(sinks, None).close()
    assert all(sink.closed for sink in sinks)


def test_a_rank_that_reports_nothing_is_silent(capsys: pytest.CaptureFixture[str]):
    with Reporter([], None) as reporter:
        reporter.train(TRAIN)
        reporter.valid(VALID)
        reporter.note("hello")
    assert capsys.readouterr() == ("", "")
