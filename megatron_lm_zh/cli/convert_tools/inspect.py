"""Says what a directory is (Hugging Face, checkpoint, run), of which model, and what is wrong with its files.

Sizes of files, names and shapes of tensors are checked; --values reads the numbers, too. The exit code is 1 where there
are problems.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_lm_zh.cli.convert_tools import common

SUMMARY = "what a model directory holds, and what is wrong with it"
EXIT_PROBLEMS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="HF directory, checkpoint or run directory")
    parser.add_argument("--tensors", action="store_true", help="list every tensor with its shape and dtype")
    parser.add_argument("--values", action="store_true", help="read every weight and look for NaN and infinity")
    common.add_plain(parser)
    parser.add_argument("--json", metavar="OUT", type=Path, help="write what is found to this file, too")


def run(args: argparse.Namespace) -> int:
    """Prints what is found."""
    from megatron_lm_zh.cli.data_tools.common import write_json
    from megatron_lm_zh.convert.inspect import inspect

    found = inspect(args.directory, common.asked_of(args), values=args.values)
    print("\n".join(found.lines(tensors=args.tensors)))
    write_json(args.json, found.to_json())
    return EXIT_PROBLEMS if found.problems else 0
