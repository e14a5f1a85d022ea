"""What the commands of `mlzh convert` share: flags and the progress line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from megatron_lm_zh.convert.legacy.find import Asked
    from megatron_lm_zh.convert.plan import Plan
    from megatron_lm_zh.convert.streaming import Progress


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Adds --workers."""
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="tensors at work at a time, as far as memory allows (default: the cores, at most 8)",
    )


def add_plain(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say of a checkpoint what it does not say itself."""
    plain = parser.add_argument_group("for checkpoints of Megatron-LM's own, which may not say it")
    plain.add_argument("--family", metavar="NAME", help="model family, where the weights fit several")
    plain.add_argument("--vocab-size", type=int, metavar="N", help="ids that there are; more rows are padding")
    plain.add_argument("--config", type=Path, metavar="YAML", help="config whose model section it is")
    plain.add_argument(
        "--hf-config", type=Path, metavar="HF_DIR", help="directory of the same model: config, tokenizer"
    )


def asked_of(args: argparse.Namespace) -> Asked:
    """What those flags say."""
    from megatron_lm_zh.convert.legacy.find import Asked

    return Asked(args.family, args.vocab_size, args.config, args.hf_config)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --workers and --dry-run."""
    add_workers(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be written, tensor by tensor, and write nothing"
    )


def convert(
    args: argparse.Namespace, output: Path, plan: Plan, run: Callable[[Callable[[Progress], None]], None]
) -> int:
    """Prints the plan where --dry-run asks for it; converts under a progress line and says what was done otherwise."""
    if args.dry_run:
        for line in plan.lines():
            print(line)
        return 0
    with ProgressLine() as progress:
        try:
            run(progress.report)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from the files that are done", file=sys.stderr)
            raise
    print(progress.summary(), file=sys.stderr)
    print(f"wrote {output}")
    return 0


class ProgressLine:
    """Renews a bar on a terminal and is silent elsewhere; knows the sum at the end."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._last: Progress | None = None
        self._bar = RichProgress(
            BarColumn(20),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            refresh_per_second=4,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=None)

    def report(self, progress: Progress) -> None:
        """Shows how far the work is."""
        self._last = progress
        self._bar.update(self._task, total=progress.total, completed=progress.done, description=_text(progress))

    def summary(self) -> str:
        """What was written and how fast."""
        if self._last is None:
            return ""
        last = self._last
        earlier = f" ({last.before / 1e9:.2f} GB of it before)" if last.before else ""
        return f"{last.done / 1e9:.2f} GB{earlier} in {last.seconds:.1f} s, {last.bytes_per_second / 1e9:.2f} GB/s"

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def _text(progress: Progress) -> str:
    speed = progress.bytes_per_second
    words = [
        f"{100 * progress.done / max(progress.total, 1):3.0f}%",
        f"{progress.done / 1e9:,.2f} of {progress.total / 1e9:,.2f} GB",
        f"{speed / 1e9:.2f} GB/s",
    ]
    if speed:
        minutes, seconds = divmod(round((progress.total - progress.done) / speed), 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(words)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
