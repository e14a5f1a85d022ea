"""The console: every figure a user looks for, aligned, an honest ETA, and a bar only where a terminal is."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from megatron_lm_zh.observe.console import Console, ConsoleLine, duration, human
from megatron_lm_zh.observe.rows import TrainRow, ValidRow


def train_row(step: int, step_time_s: float = 0.5, attempt: int = 1, mfu: float | None = None) -> TrainRow:
    return TrainRow(
        step=step, lm_loss=5.12345, grad_norm=0.8123, lr=3e-4, tokens=step * 1000, tokens_per_s=9012.0,
        step_time_s=step_time_s, attempt=attempt, memory_gb=12.34, mfu=mfu,
    )  # fmt: skip


def valid_row(source: str, ppl: float = 150.0) -> ValidRow:
    return ValidRow(step=100, source=source, lm_loss=5.01, ppl=ppl, bits_per_byte=1.5, bits_per_char=None, tokens=4096)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_train_line_names_every_figure():
    line = ConsoleLine(2000, 2_000_000).train(train_row(100, mfu=0.412))
    assert line == (
        "step   100/2,000    5.0%  eta     15:50  tokens   100k/2.00M  lm loss  5.1235  grad norm   0.812  lr 3.00e-04"
        "   9.01k tok/s   12.3 GB  mfu 41.2%"
    )


def test_mfu_is_shown_only_where_it_is_known():
    assert "mfu" not in ConsoleLine(2000, 2_000_000).train(train_row(100))


def test_experts_and_loss_scale_are_shown_where_there_are_any():
    from dataclasses import replace

    plain = train_row(100)
    line = ConsoleLine(2000, 2_000_000)
    assert line.train(replace(plain, extra={"moe_load_max": 1.8341})).endswith("GB  expert load max  1.83")
    scaled = line.train(replace(plain, loss_scale=65536.0, skipped_steps=4))
    assert scaled.endswith("GB  scale    65536  skipped 4")
    skipped = line.train(replace(plain, grad_norm=None, loss_scale=65536.0, skipped_steps=5))
    assert "overflow: skipped" in skipped and len(skipped) == len(scaled)


def test_lines_stand_under_each_other():
    line = ConsoleLine(20000, 20_000_000)
    lines = [line.train(train_row(step)) for step in (1, 10, 999, 1000, 12345, 20000)]
    assert len({len(text) for text in lines}) == 1
    assert len({text.index("lm loss") for text in lines}) == 1


def test_validation_lines_align_with_chinese_source_names():
    line = ConsoleLine(2000, 2_000_000)
    line.valid(valid_row("中文维基"))
    lines = [line.valid(valid_row("中文维基")), line.valid(valid_row("en", ppl=3e7))]
    assert len({cell_len(text) for text in lines}) == 1
    assert "bits/byte  1.5000" in lines[0]
    assert "bits/char       -" in lines[0]
    assert "valid en " in lines[1]


def test_eta_forgets_the_first_interval_of_an_attempt():
    line = ConsoleLine(1000, 1000)
    line.train(train_row(10, step_time_s=30.0))
    assert line.eta_s(10) == pytest.approx(990 * 30.0)
    line.train(train_row(20, step_time_s=1.0))
    assert line.eta_s(20) == pytest.approx(980.0)
    line.train(train_row(30, step_time_s=2.0))
    assert line.eta_s(30) == pytest.approx(970 * 1.2)
    line.train(train_row(40, step_time_s=50.0, attempt=2))
    line.train(train_row(50, step_time_s=3.0, attempt=2))
    assert line.eta_s(50) == pytest.approx(950 * 3.0)


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    console = Console(ConsoleLine(100, 100_000), stream, total_steps=100)
    console.train(train_row(1))
    console.valid(valid_row("[zh]"))
    console.note("saved [bold]checkpoint[/bold]")
    console.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()
    assert lines[2] == "saved [bold]checkpoint[/bold]"


def test_a_terminal_gets_the_same_lines_and_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console = Console(ConsoleLine(100, 100_000), stream, total_steps=100, first_step=20)
    row = train_row(50)
    console.train(row)
    console.note("[zh] done")
    console.close()
    console.close()
    shown = stream.getvalue()
    assert ConsoleLine(100, 100_000).train(row) in shown
    assert "[zh] done" in shown
    assert "50%" in shown
    assert "eta 0:25" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (950, "950"),
        (20480, "20.5k"),
        (1.234e6, "1.23M"),
        (2.46e9, "2.46B"),
        (345e9, "345B"),
        (1.5e12, "1.50T"),
    ],
)
def test_human_counts(count: float, text: str):
    assert human(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(7, "0:07"), (754, "12:34"), (12060, "3:21:00"), (5 * 86400 + 12060, "5d 03:21")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text
