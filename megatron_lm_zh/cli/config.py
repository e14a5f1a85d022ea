"""Shows a config with every default filled in, draws its layout, or explains one of its keys."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "show a resolved config, draw its layout, or explain one of its keys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `show`, `layout` and `explain`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="show|layout|explain")
    show = commands.add_parser("show", help="check a config and print it with every default filled in")
    show.add_argument("config", help="YAML file")
    show.add_argument("overrides", nargs="*", metavar="a.b=value", help="values that win over the file's")
    show.add_argument("--world", type=int, metavar="N", help="check the layout for N ranks, too")
    layout = commands.add_parser("layout", help="draw which of N ranks holds what, and which groups cross nodes")
    layout.add_argument("config", help="YAML file")
    layout.add_argument("overrides", nargs="*", metavar="a.b=value", help="values that win over the file's")
    layout.add_argument("--world", type=int, required=True, metavar="N", help="number of ranks")
    layout.add_argument("--gpus-per-node", type=int, default=8, metavar="M", help="ranks a node (default: 8)")
    explain = commands.add_parser("explain", help="type, default and meaning of a key, and the rules that read it")
    explain.add_argument("key", nargs="?", help="key (model.num_layers), section (model) or model.megatron.FIELD")


def run(args: argparse.Namespace) -> int:
    """Prints what was asked for."""
    if args.action == "show":
        from megatron_lm_zh.config.load import load_config, to_yaml

        _at_least_one("--world", args.world)
        sys.stdout.write(to_yaml(load_config(args.config, args.overrides, world=args.world)))
        return 0
    if args.action == "layout":
        from megatron_lm_zh.config.load import load_config
        from megatron_lm_zh.config.picture import picture

        _at_least_one("--world", args.world)
        _at_least_one("--gpus-per-node", args.gpus_per_node)
        config = load_config(args.config, args.overrides, world=args.world)
        print(*picture(config, [rank // args.gpus_per_node for rank in range(args.world)]), sep="\n")
        return 0
    from megatron_lm_zh.config.explain import explain, explain_all

    print(explain(args.key) if args.key else explain_all())
    return 0


def _at_least_one(flag: str, value: int | None) -> None:
    from megatron_lm_zh.errors import UserError

    if value is not None and value < 1:
        raise UserError(f"{flag} {value}", expected="1 or more ranks")
