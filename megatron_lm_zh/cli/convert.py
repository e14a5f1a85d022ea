"""Checkpoints to and from Hugging Face directories; compares them and says what they are.

CHECKPOINT is a checkpoint directory or a run directory (then its newest complete checkpoint). The layout that trained
(tensor, pipeline) does not matter. Each command explains itself with --help.
"""

from __future__ import annotations

import argparse

from megatron_lm_zh.cli.group import add_subcommands, run_subcommand

SUMMARY = "checkpoints to and from Hugging Face directories"
SUBCOMMANDS = ("to-hf", "from-hf", "reshard", "verify", "inspect")
"""Each is a file of cli/convert_tools/, which has SUMMARY, add_arguments(parser) and run(args)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands and their flags."""
    add_subcommands(parser, "convert_tools", SUBCOMMANDS)


def run(args: argparse.Namespace) -> int:
    """Runs the asked subcommand."""
    return run_subcommand(args)
