"""Shows a config with every default filled in, or explains one of its keys."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "show a resolved config, or explain one of its keys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `show` and `explain`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="show|explain")
    show = commands.add_parser("show", help="check a config and print it with every default filled in")
    show.add_argument("config", help="YAML file")
    show.add_argument("overrides", nargs="*", metavar="a.b=value", help="values that win over the file's")
    show.add_argument("--world", type=int, metavar="N", help="check the layout for N ranks, too")
    explain = commands.add_parser("explain", help="type, default and meaning of a key, and the rules that read it")
    explain.add_argument("key", nargs="?", help="key (model.num_layers), section (model) or model.megatron.FIELD")


def run(args: argparse.Namespace) -> int:
    """Prints what was asked for."""
    if args.action == "show":
        from megatron_lm_zh.config.load import load_config, to_yaml
        from megatron_lm_zh.errors import UserError

        if args.world is not None and args.world < 1:
            raise UserError(f"--world {args.world}", expected="1 or more ranks")
        sys.stdout.write(to_yaml(load_config(args.config, args.overrides, world=args.world)))
        return 0
    from megatron_lm_zh.config.explain import explain, explain_all

    print(explain(args.key) if args.key else explain_all())
    return 0
