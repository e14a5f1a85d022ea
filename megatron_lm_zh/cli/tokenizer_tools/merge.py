"""Extends a tokenizer: a Llama-2-like .model, or a byte-level BPE (Qwen, Llama 3, GPT-2), also of a .tiktoken file.

New pieces are learnt from text (--corpus with --add), are those of another tokenizer (--pieces), or both, the donor's
first. Every new piece can be reached, all rank behind the base's, and text without Chinese characters keeps its tokens.
A donor's pieces that cannot be had so are left out; DIR/extension.json says which and why.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

SUMMARY = "extend a tokenizer's vocabulary"
_PATTERN = "how a .tiktoken base's text is cut: qwen, llama3, llama3.1, gpt2, cl100k, o200k (default: by its size)"
_SPECIAL = "its special tokens, the first of which ends a document (default: those that go with the pattern)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("--base", required=True, type=Path, metavar="PATH", help=".model file or directory")
    parser.add_argument("--pattern", default="", metavar="NAME", help=_PATTERN)
    parser.add_argument("--special", nargs="+", default=[], metavar="TOKEN", help=_SPECIAL)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new directory to write")
    parser.add_argument("--pieces", type=Path, metavar="PATH", help=".model, directory, or .txt with a piece a line")
    parser.add_argument("--corpus", nargs="+", default=[], type=Path, metavar="FILE", help=".txt, .jsonl, .parquet")
    parser.add_argument("--add", type=int, metavar="N", help="how many pieces are learnt from --corpus")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="random share of the text (default: 1)")
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of that share (default: 1234)")
    parser.add_argument(
        "--joins",
        choices=("base", "words", "punctuation"),
        default="base",
        help="whether learnt pieces join words and punctuation: as the base's own do (default), never, or always",
    )
    parser.add_argument(
        "--intermediates",
        type=int,
        metavar="N",
        help="pieces at most that only make --pieces's (default: all it takes)",
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Extends and says what there is now."""
    from megatron_lm_zh.errors import UserError
    from megatron_lm_zh.files import check_new_directory
    from megatron_lm_zh.tokenizer.merge.artifacts import write_extension
    from megatron_lm_zh.tokenizer.merge.bases import load_base
    from megatron_lm_zh.tokenizer.merge.construct import Rules, extend_from_corpus, extend_from_donor
    from megatron_lm_zh.tokenizer.merge.donors import load_donor
    from megatron_lm_zh.tokenizer.texts import read_texts

    if args.pieces is None and (not args.corpus or args.add is None):
        raise UserError("nothing to add", expected="--corpus with --add, or --pieces")
    if args.pieces is not None and args.add is not None and not args.corpus:
        raise UserError("--add with --pieces", expected="--corpus, to learn them from")
    if args.threads < 1:
        raise UserError(f"--threads {args.threads}", expected="1 or more")
    if args.intermediates is not None and (args.pieces is None or args.intermediates < 0):
        raise UserError(f"--intermediates {args.intermediates}", expected="0 or more, and --pieces")
    check_new_directory(args.output)  # learning takes a while
    base = load_base(args.base, pattern=args.pattern, special=args.special)
    texts = read_texts(args.corpus, json_key=args.json_key, share=args.share, seed=args.seed) if args.corpus else []
    rules = Rules(args.joins, threads=args.threads, intermediates=args.intermediates)
    if args.pieces is None:
        extension = extend_from_corpus(base, texts, args.add, rules)
    else:
        extension = extend_from_donor(base, load_donor(args.pieces), texts, rules)
        if args.add is not None:
            extension = extend_from_corpus(base, texts, args.add, rules, behind=extension)
    tokenizer = write_extension(extension, args.output)
    print(
        f"{args.output}: {tokenizer.vocab_size:,} ids, {len(extension.pieces):,} of them new, "
        f"fingerprint {tokenizer.fingerprint[:12]}"
    )
    if extension.intermediates:
        print(f"{extension.intermediates:,} new pieces are there because others are made of them")
    for reason, count in Counter(one.reason for one in extension.dropped).most_common():
        print(f"{count:,} pieces left out: {reason}")
    return 0
