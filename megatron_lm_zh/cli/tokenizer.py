"""Makes tokenizers: `train` learns one from text, `merge` extends one, `report` audits, `embed` fits a model."""

from __future__ import annotations

import argparse

from megatron_lm_zh.cli.group import add_subcommands, run_subcommand

SUMMARY = "train, extend and audit tokenizers"
SUBCOMMANDS = ("train", "merge", "report", "embed")
"""Each is a file of cli/tokenizer_tools/, which has SUMMARY, add_arguments(parser) and run(args)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands and their flags."""
    add_subcommands(parser, "tokenizer_tools", SUBCOMMANDS)


def run(args: argparse.Namespace) -> int:
    """Runs the asked subcommand."""
    return run_subcommand(args)
