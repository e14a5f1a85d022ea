"""Text to Megatron datasets: JSONL files to <output-prefix>_<key>_document.bin, .idx and .json (manifest)."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_lm_zh.data.preprocess import Progress

SUMMARY = "tokenize JSONL files into .bin/.idx datasets"
SKIPS_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags, named as Megatron-LM's preprocess_data.py names them."""
    parser.add_argument("--input", nargs="+", required=True, type=Path, metavar="FILE", help="JSONL, a document a line")
    parser.add_argument("--output-prefix", required=True, metavar="P", help="path and beginning of the datasets' names")
    parser.add_argument(
        "--tokenizer-type",
        required=True,
        metavar="TYPE",
        help="SentencePiece or HuggingFace (or Megatron-LM's Llama2Tokenizer, SentencePieceTokenizer, "
        "HuggingFaceTokenizer)",
    )
    parser.add_argument("--tokenizer-model", required=True, metavar="PATH", help=".model file or directory")
    parser.add_argument(
        "--json-keys", nargs="+", default=["text"], metavar="KEY", help="a dataset is made of each (default: text)"
    )
    parser.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document token")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes (default: 1); output is the same"
    )
    parser.add_argument(
        "--on-error",
        choices=["skip", "stop"],
        default="stop",
        help="what to do with an empty or broken line (default: stop)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from megatron_lm_zh.data.preprocess import Job, preprocess
    from megatron_lm_zh.tokenizer.load import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer_type, args.tokenizer_model)
    job = Job(
        inputs=tuple(args.input),
        output_prefix=args.output_prefix,
        tokenizer_type=args.tokenizer_type,
        json_keys=tuple(args.json_keys),
        append_eod=args.append_eod,
        workers=args.workers,
        skip_errors=args.on_error == "skip",
    )
    manifests = preprocess(job, tokenizer, on_progress=_progress_line(), on_skip=_skip_line())
    for prefix, manifest in manifests.items():
        skipped = f", {manifest.skipped:,} lines skipped" if manifest.skipped else ""
        print(
            f"{prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}), "
            f"{manifest.bytes / 1e6:.1f} MB of text, {manifest.characters / manifest.tokens:.2f} characters a token"
            f"{skipped}"
        )
    return 0


def _progress_line() -> Callable[[Progress], None]:
    """A reporter that renews one line on a terminal, and prints one now and then elsewhere."""
    terminal = sys.stderr.isatty()
    interval = 0.5 if terminal else 10.0
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        done = progress.bytes_done == progress.bytes_total
        if time.monotonic() - last < interval and not (done and terminal):
            return
        last = time.monotonic()
        speed = progress.bytes_done / max(progress.seconds, 1e-9)
        left = (progress.bytes_total - progress.bytes_done) / speed
        text = (
            f"{100 * progress.bytes_done / progress.bytes_total:3.0f}%  {progress.documents:,} documents  "
            f"{progress.bytes_done / 1e6:,.0f} of {progress.bytes_total / 1e6:,.0f} MB  {speed / 1e6:.1f} MB/s  "
            f"{left:.0f} s left"
        )
        print(
            f"\r{text:<79}" if terminal else text, end="\n" if done or not terminal else "", file=sys.stderr, flush=True
        )

    return report


def _skip_line() -> Callable[[str], None]:
    """A reporter of the first lines that are left out; the summary counts all of them."""
    shown = 0

    def report(message: str) -> None:
        nonlocal shown
        shown += 1
        if shown <= SKIPS_SHOWN:
            print(f"skipped {message}", file=sys.stderr)
        elif shown == SKIPS_SHOWN + 1:
            print("skipped more lines, which are only counted", file=sys.stderr)

    return report
