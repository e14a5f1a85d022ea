"""A command of several: each subcommand is a file that has SUMMARY, add_arguments(parser) and run(args)."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence


def add_subcommands(parser: argparse.ArgumentParser, room: str, names: Sequence[str]) -> None:
    """Adds the subcommands, files of cli/<room>/, with their flags."""
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for name in names:
        module = importlib.import_module(f"megatron_lm_zh.cli.{room}.{name.replace('-', '_')}")
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run_subcommand=module.run)


def run_subcommand(args: argparse.Namespace) -> int:
    """Runs the asked subcommand."""
    return int(args.run_subcommand(args))
