"""Gives a Hugging Face model the embedding and output rows that an extended tokenizer needs.

A new token's row is made of the rows of the tokens that spell it for the model's own tokenizer: their mean, scaled to
the mean of their norms. The model's own rows and all other weights keep every bit. The memory is that of a few rows,
however large the model is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "rows for an extended tokenizer's new tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "--from", dest="source", required=True, type=Path, metavar="HF_DIR", help="model with safetensors"
    )
    parser.add_argument("--tokenizer", required=True, type=Path, metavar="DIR", help="the extended tokenizer")
    parser.add_argument("--output", required=True, type=Path, metavar="HF_DIR", help="directory to make")
    parser.add_argument(
        "--method",
        default="scaled-mean",
        metavar="METHOD",
        help="scaled-mean (default), centred-scaled-mean, mean, byte-mean, vocabulary-mean, normal",
    )
    parser.add_argument(
        "--output-method",
        metavar="METHOD",
        help="for rows that give logits: an output layer's or a tied embedding's (default: as --method)",
    )
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="for methods that draw (default: 1234)")
    parser.add_argument(
        "--pad-to-multiple-of",
        type=int,
        metavar="N",
        help="rows become a multiple of N, with zeros (default: as padded as the model is)",
    )
    parser.add_argument(
        "--base-tokenizer", type=Path, metavar="DIR", help="the model's own tokenizer, if HF_DIR does not hold it"
    )


def run(args: argparse.Namespace) -> int:
    """Extends and says what there is now."""
    from megatron_lm_zh.convert.embedding.extend import Options, extend_embedding

    options = Options(args.method, args.output_method, args.seed, args.pad_to_multiple_of, args.base_tokenizer)
    result = extend_embedding(
        args.source, args.tokenizer, args.output, options, lambda line: print(line, file=sys.stderr, flush=True)
    )
    if result.left_out:
        print(f"left out, as they hold the old rows: {', '.join(result.left_out)}")
    print(
        f"{args.output}: {result.kept + result.new + result.padding:,} rows, {result.kept:,} of them kept, "
        f"{result.new:,} new, {result.padding:,} padding; fingerprint {result.fingerprint[:12]}"
    )
    print(f"a new token is made of {result.parts:.2f} old ones on average")
    if result.unspelled:
        print(f"{result.unspelled:,} new tokens that the base cannot spell got the mean of all its rows")
    for name, norms in result.norms.items():
        print(f"{name}: {result.methods[name]}, mean norm of new rows {norms.new:.4g}, of the base's {norms.base:.4g}")
    return 0
