"""Trains a tokenizer: SentencePiece BPE or unigram, byte-level BPE (Qwen, Llama 3), or WordPiece (BERT).

DIR is a directory that transformers loads, too. DIR/training.json says what the tokenizer was trained on, and how. The
same input and flags give the same files, whatever the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_lm_zh.tokenizer.train import Progress

SUMMARY = "train a tokenizer on text"
LINE_EVERY = 10.0  # seconds; a terminal's line is renewed all the time
OPTIONS = (
    "special_tokens",
    "pad_token",
    "normalization",
    "split_digits",
    "byte_fallback",
    "character_coverage",
    "longest_piece",
    "lowercase",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags; those of `OPTIONS` are None where they are not given, for a kind may not take them."""
    add = parser.add_argument
    add("--input", nargs="+", required=True, type=Path, metavar="FILE", help=".jsonl, .txt or .parquet files")
    add("--vocab-size", type=int, required=True, metavar="N", help="number of token ids, special tokens included")
    add(
        "--model-type",
        default="bpe",
        metavar="KIND",
        help="bpe or unigram (SentencePiece), byte-level-bpe, wordpiece (default: bpe)",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="new directory to write")
    add("--json-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    add("--share", type=float, default=1.0, metavar="X", help="random share of the text (default: 1)")
    add("--seed", type=int, default=1234, metavar="N", help="of that share (default: 1234)")
    add(
        "--normalization",
        metavar="NAME",
        help="identity, nfkc; bpe, unigram: also nmt_nfkc, nfkc_cf, nmt_nfkc_cf; others: also nfc "
        "(default: identity, text as it is)",
    )
    add("--special-tokens", nargs="+", metavar="TEXT", help="more special tokens, e.g. '<|im_start|>' '<|im_end|>'")
    add("--pad-token", metavar="TEXT", help="a padding token (not for wordpiece, which has one)")
    add(
        "--split-digits",
        action=argparse.BooleanOptionalAction,
        help="whether each digit is a token of its own (default: yes)",
    )
    add(
        "--byte-fallback",
        action=argparse.BooleanOptionalAction,
        help="whether bytes spell what has no token, rather than <unk> (default: yes; bpe, unigram)",
    )
    add(
        "--character-coverage",
        type=float,
        metavar="X",
        help="share of the characters that get a token (default: 0.9995; bpe, unigram, wordpiece)",
    )
    add(
        "--longest-piece",
        type=int,
        metavar="N",
        help="characters at most, byte-level-bpe: bytes (default: 16 for bpe and unigram, no bound for the others)",
    )
    add("--lowercase", action="store_const", const=True, help="letters lose case and accents (wordpiece)")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="threads (byte-level-bpe, wordpiece; default: the cores this process may use); output is the same",
    )


def run(args: argparse.Namespace) -> int:
    """Trains and says what there is now."""
    _set_threads(args.threads, args.model_type)
    from megatron_lm_zh.tokenizer.texts import TextFiles
    from megatron_lm_zh.tokenizer.train import RECORD_FILE, train_tokenizer

    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    if "special_tokens" in options:
        options["special_tokens"] = tuple(options["special_tokens"])
    files = TextFiles(tuple(args.input), args.json_key, args.share, args.seed)
    with _Reporter(f"{args.model_type}, {args.vocab_size:,} ids") as reporter:
        directory = train_tokenizer(
            files,
            args.output,
            vocab_size=args.vocab_size,
            model_type=args.model_type,
            on_progress=reporter.report,
            **options,
        )
    record = json.loads((directory / RECORD_FILE).read_bytes())
    taken = record["options"]
    print(f"{directory}: {record['vocab_size']:,} ids, fingerprint {record['fingerprint'][:12]}")
    normalization = "none" if taken["normalization"] == "identity" else taken["normalization"]
    normalization += ", lower case" if taken.get("lowercase") else ""
    digits = "one a token" if taken["split_digits"] else "side by side"
    print(f"{record['model_type']}; normalization: {normalization}; cleaning: {record['cleaning']}; digits: {digits}")
    return 0


def _set_threads(threads: int | None, model_type: str) -> None:
    """`tokenizers` reads how many threads it may have from the environment, when it first has work."""
    from megatron_lm_zh.errors import UserError

    if threads is None:
        return
    if threads < 1:
        raise UserError(f"{threads}", where="--threads", expected="1 or more")
    if model_type in ("bpe", "unigram"):
        raise UserError(f"{model_type} does not take it", where="--threads", expected="byte-level-bpe or wordpiece")
    os.environ["RAYON_NUM_THREADS"] = str(threads)


class _Reporter:
    """Renews one line of stderr on a terminal, and prints one now and then elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._next, self._was_read = 0.0, False

    def report(self, progress: Progress) -> None:
        """Says how far it is, if it is time."""
        now = time.monotonic()
        if now < self._next and progress.is_read == self._was_read:
            return
        self._next, self._was_read = now + (0.0 if self._terminal else LINE_EVERY), progress.is_read
        if progress.is_read:
            text = f"training {self._what}: {progress.seconds:.0f} s"
        else:
            text = f"reading: {progress.bytes_done / 1e6:,.1f} of {progress.bytes_total / 1e6:,.1f} MB"
        print(
            f"\r{text:<79}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal and self._next:
            print(file=sys.stderr)
