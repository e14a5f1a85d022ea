"""What a person sees of a run: one aligned line per log step and per validation, and a progress bar on a terminal."""

from __future__ import annotations

from typing import TextIO

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from megatron_lm_zh.observe.rows import TrainRow, ValidRow

_NEWEST_WEIGHT = 0.2  # of the newest interval in the smoothed step time: about the last ten intervals count


class ConsoleLine:
    """Formats rows as lines whose columns stand under each other.

    Args:
        total_steps: steps of the whole run.
        total_tokens: tokens of the whole run.
    """

    def __init__(self, total_steps: int, total_tokens: int) -> None:
        self._total_steps = total_steps
        self._total_tokens = human(total_tokens)
        self._step_width = len(f"{total_steps:,}")
        self._source_width = 0
        self._attempt: int | None = None
        self._step_time_s: float | None = None
        self._warm = False

    def train(self, row: TrainRow) -> str:
        """The line of a log interval: step, %, ETA, tokens seen, lm loss, grad norm, lr, tokens/s, memory, MFU.

        With fp16 the loss scale and skipped steps follow, with experts the load of the busiest (1: an equal share).
        """
        self._smooth(row)
        columns = [
            self._step(row.step),
            f"{row.step / self._total_steps:6.1%}",
            f"eta {duration(self.eta_s(row.step)):>9}",
            f"tokens {human(row.tokens):>6}/{self._total_tokens}",
            f"lm loss {row.lm_loss:7.4f}",
            f"grad norm {row.grad_norm:7.3f}" if row.grad_norm is not None else "overflow: skipped",
            f"lr {row.lr:.2e}",
            f"{human(row.tokens_per_s):>6} tok/s",
            f"{row.memory_gb:5.1f} GB",
        ]
        if row.mfu is not None:
            columns.append(f"mfu {row.mfu:5.1%}")
        if row.loss_scale is not None:
            columns.append(f"scale {row.loss_scale:8.6g}  skipped {row.skipped_steps}")
        if "moe_load_max" in row.extra:
            columns.append(f"expert load max {row.extra['moe_load_max']:5.2f}")
        return "  ".join(columns)

    def valid(self, row: ValidRow) -> str:
        """The line of an evaluated source: step, source, lm loss, perplexity, bits per byte and character, tokens."""
        # Source names may be Chinese, whose characters take two cells.
        self._source_width = max(self._source_width, cell_len(row.source))
        columns = [
            self._step(row.step),
            f"{row.kind} {row.source}{' ' * (self._source_width - cell_len(row.source))}",
            f"lm loss {row.lm_loss:7.4f}",
            f"ppl {row.ppl:9.2f}" if row.ppl < 1e6 else f"ppl {row.ppl:9.2e}",
            f"bits/byte {_bits(row.bits_per_byte)}",
            f"bits/char {_bits(row.bits_per_char)}",
            f"tokens {human(row.tokens):>6}",
        ]
        return "  ".join(columns)

    def eta_s(self, step: int) -> float:
        """Seconds of training left after ``step`` at the smoothed step time; evaluation and saving come on top."""
        return (self._total_steps - step) * (self._step_time_s or 0.0)

    def _step(self, step: int) -> str:
        return f"step {step:>{self._step_width},}/{self._total_steps:,}"

    def _smooth(self, row: TrainRow) -> None:
        # The first interval of an attempt holds its first step, which compiles, allocates and connects: it stands
        # for the step time only until there is a second one.
        if row.attempt != self._attempt:
            self._attempt, self._step_time_s, self._warm = row.attempt, row.step_time_s, False
        elif not self._warm or self._step_time_s is None:
            self._step_time_s, self._warm = row.step_time_s, True
        else:
            self._step_time_s += _NEWEST_WEIGHT * (row.step_time_s - self._step_time_s)


class Console:
    """Prints lines to a stream, under them a progress bar where the stream is a terminal.

    Args:
        line: formats the rows.
        stream: usually standard output.
        total_steps: steps of the whole run, the bar's end.
        first_step: steps done before this attempt, where the bar begins.
    """

    def __init__(self, line: ConsoleLine, stream: TextIO, *, total_steps: int, first_step: int = 0) -> None:
        self._line = line
        self._stream = stream
        self._bar: Progress | None = None
        if stream.isatty():
            eta = TextColumn("eta {task.fields[eta]}")
            columns = (TextColumn("step {task.completed:,.0f}"), BarColumn(None), TaskProgressColumn(), eta)
            self._bar = Progress(*columns, console=RichConsole(file=stream), refresh_per_second=2)
            self._task = self._bar.add_task("", total=total_steps, completed=first_step, eta="-")
            self._bar.start()

    def train(self, row: TrainRow) -> None:
        """Prints a log interval and moves the bar."""
        self.note(self._line.train(row))
        if self._bar:
            self._bar.update(self._task, completed=row.step, eta=duration(self._line.eta_s(row.step)))

    def valid(self, row: ValidRow) -> None:
        """Prints an evaluated source."""
        self.note(self._line.valid(row))

    def note(self, text: str) -> None:
        """Prints a line as it is, above the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Stops the bar and gives the terminal's cursor back; may be called twice."""
        if self._bar:
            self._bar.stop()


def human(count: float) -> str:
    """A count in three or four digits with its unit, e.g. ``950``, ``20.5k``, ``1.23M``, ``2.46B``, ``1.50T``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            scaled = count / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """A time span for people: ``0:07``, ``12:34``, ``3:21:00``, ``5d 03:21``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _bits(value: float | None) -> str:
    return "      -" if value is None else f"{value:7.4f}"
