"""Makes tokenizers: `train` learns a SentencePiece BPE from text."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "train a tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands and their flags."""
    commands = parser.add_subparsers(dest="tokenizer_command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a SentencePiece BPE on text",
        description="Trains a byte-fallback SentencePiece BPE; writes DIR/tokenizer.model and Hugging Face files.",
    )
    train.add_argument("--input", nargs="+", required=True, type=Path, metavar="FILE", help=".jsonl or .txt files")
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of token ids")
    train.add_argument("--model-type", choices=["bpe"], default="bpe", help="kind of model (default: bpe)")
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    train.add_argument("--json-key", default="text", metavar="KEY", help="key of the text in .jsonl (default: text)")


def run(args: argparse.Namespace) -> int:
    """Runs the asked subcommand."""
    from megatron_lm_zh.tokenizer.load import load_tokenizer
    from megatron_lm_zh.tokenizer.train import train_tokenizer

    directory = train_tokenizer(args.input, args.output, vocab_size=args.vocab_size, json_key=args.json_key)
    tokenizer = load_tokenizer("SentencePiece", directory)
    print(f"{directory}: {tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint[:12]}")
    return 0
