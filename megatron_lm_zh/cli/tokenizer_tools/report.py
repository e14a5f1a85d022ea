"""Audits tokenizers beside the first one, their base: pieces that no text becomes, texts that change, tokens for text.

A text is a line of a file, or a record of .jsonl or .parquet; blank ones are left out. NAME=FILE names a domain, FILE
alone is named after the file. A piece can be reached where its own text becomes that one token. `changed` counts texts
whose ids are not the base's. Under the tables stand the first pieces of each finding; --json has all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_lm_zh.cli.data_tools import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megatron_lm_zh.tokenizer.report.figures import Audit

SUMMARY = "audit tokenizers beside a base"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "tokenizers",
        nargs="+",
        metavar="[NAME=]DIR",
        help=".model or .tiktoken files, or Hugging Face directories, the base first",
    )
    parser.add_argument(
        "--text", nargs="+", required=True, metavar="[NAME=]FILE", help="UTF-8 text, a line a text; .jsonl; .parquet"
    )
    parser.add_argument("--json-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    parser.add_argument("--lines", type=int, metavar="N", help="only the first N texts of each file")
    parser.add_argument("--html", type=Path, metavar="OUT", help="also write a page with plots and coloured tokens")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="texts a domain side by side (default: 3)")
    parser.add_argument(
        "--list", type=int, default=10, metavar="N", help="pieces and texts named of each finding (default: 10)"
    )
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the figures."""
    from megatron_lm_zh.errors import UserError
    from megatron_lm_zh.files import write_bytes
    from megatron_lm_zh.tokenizer.report.domains import read_domain
    from megatron_lm_zh.tokenizer.report.figures import audit, open_tokenizer
    from megatron_lm_zh.tokenizer.report.page import page
    from megatron_lm_zh.tokenizer.report.rows import domain_rows, piece_rows

    for flag in ("lines", "samples", "list"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} {value}", expected="1 or more")
    (name, path), *others = map(_named, args.tokenizers)
    base = open_tokenizer(path, name or "base")
    opened = [base, *(open_tokenizer(path, name) for name, path in others)]
    for number, one in enumerate(opened):
        if one.name in [other.name for other in opened[:number]]:
            raise UserError(f"two tokenizers called {one.name}", expected="NAME=DIR for each")
    files = map(_named, args.text)
    domains = [read_domain(Path(path), name, json_key=args.json_key, most=args.lines) for name, path in files]
    audits = [audit(one, base, domains, args.list) for one in opened]
    out = common.console()
    for rows in (piece_rows(audits), domain_rows(audits)):
        table = common.table(*rows[0])
        for row in rows:
            table.add_row(*map(common.plain, row.values()))
        out.print(table)
        out.print()
    for line in _found(audits, args.list):
        out.print(common.plain(line), soft_wrap=True)
    common.write_json(args.json, [one.to_json() for one in audits])
    if args.html:
        write_bytes(args.html, page(audits, opened, domains, samples=args.samples).encode())
    return 0


def _found(audits: Sequence[Audit], most: int) -> list[str]:
    """A line for each finding, with the first pieces or the numbers of the first texts."""
    from megatron_lm_zh.tokenizer.report.rows import piece_lists, text_lists

    lines = []
    for one in audits:
        for name, pieces in piece_lists(one):
            more = f" and {len(pieces) - most:,} more" if len(pieces) > most else ""
            lines.append(f"{one.name}: {name}: {', '.join(map(repr, pieces[:most]))}{more}")
        for name, domain, count, examples in text_lists(one):
            numbers = ", ".join(f"{example.number:,}" for example in examples)
            more = f" and {count - len(examples):,} more" if count > len(examples) else ""
            lines.append(f"{one.name}: {name}: texts {numbers} of {domain}{more}")
    return lines


def _named(argument: str) -> tuple[str, str]:
    name, sign, path = argument.partition("=")
    return (name, path) if sign else ("", argument)
