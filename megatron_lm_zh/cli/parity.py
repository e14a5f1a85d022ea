"""Trains the first steps twice, on one rank and in the asked layout, and compares them step by step.

The run is scaled down first, so that any machine bears it: small sizes, two ranks on every axis of the layout, token
ids made up from the seed. Both worlds run on this machine's CPU; nothing is saved. Exit code 4 when they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_lm_zh.config.schema import Config
    from megatron_lm_zh.parity.compare import StepRecord

SUMMARY = "prove a layout: its first steps against one rank's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("config", help="YAML file of a run, with the layout to prove")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replace or add values of the config")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps to compare (default: 20)")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks of the layout (default: the fewest)")
    parser.add_argument("--as-is", action="store_true", help="do not scale the run down")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "config"),
        help="compare in fp32, or in the config's format (default: fp32, and the config's with --as-is)",
    )
    parser.add_argument("--data", action="store_true", help="read the config's datasets (default: made-up token ids)")
    parser.add_argument("--gpu", action="store_true", help="run on GPUs, one a rank (default: on the CPU)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the table to this file, too")
    parser.add_argument("--record", type=Path, metavar="FILE", help=argparse.SUPPRESS)  # what each rank is started with


def run(args: argparse.Namespace) -> int:
    """Starts the two worlds and compares what they recorded, or, as one of their ranks, records."""
    from megatron_lm_zh.runtime.ranks import discover

    ranks = discover(os.environ)
    return _compare(args) if args.record is None else _record(args, ranks.world)


def _compare(args: argparse.Namespace) -> int:
    from megatron_lm_zh.errors import EXIT_OK, EXIT_PARITY, UserError
    from megatron_lm_zh.files import write_bytes
    from megatron_lm_zh.parity.compare import compare
    from megatron_lm_zh.parity.one_rank import alone
    from megatron_lm_zh.parity.report import by_design

    if args.steps < 1:
        raise UserError(f"--steps {args.steps}", expected="at least 1")
    if not args.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks; the ranks inherit it
    config, world = _prepared(args)
    one_rank = _steps_of("one rank", alone(config), 1, args)
    layout = _steps_of("the layout", config, world, args)
    comparison = compare(one_rank, layout, config.precision.dtype)
    print("\n".join(comparison.lines()))
    for note in by_design(config, world):
        print(note)
    if args.json is not None:
        write_bytes(args.json, (json.dumps(comparison.to_json(), indent=1) + "\n").encode())
    return EXIT_OK if comparison.agrees else EXIT_PARITY


def _prepared(args: argparse.Namespace) -> tuple[Config, int]:
    """The config to run and its number of ranks, after saying how it differs from the one asked."""
    from dataclasses import replace

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.config.sections.precision import Precision
    from megatron_lm_zh.parity.report import changes, kept
    from megatron_lm_zh.parity.scale import scaled_down
    from megatron_lm_zh.runtime.device import detect

    config = load_config(args.config, args.overrides)
    if args.as_is:
        world = args.ranks or config.smallest_world
        config = load_config(args.config, args.overrides, world=world)
        if args.dtype == "fp32":
            config = replace(config, precision=Precision(dtype="fp32"))
        return config, world
    fp32 = args.dtype != "config"
    small, world = scaled_down(
        config, detect(), steps=args.steps, ranks=args.ranks, fp32=fp32, vocabulary=not args.data
    )
    print("yours -> here", *changes(config, small), *kept(config, small), sep="\n")
    return small, world


def _steps_of(name: str, config: Config, world: int, args: argparse.Namespace) -> list[StepRecord]:
    """Runs one world and returns what it recorded; SystemExit with its code where it fails."""
    from megatron_lm_zh.config.load import load_config, to_yaml
    from megatron_lm_zh.parity.compare import StepRecord
    from megatron_lm_zh.runtime.launch import launch_local

    print(f"{name}: {args.steps} steps on {world} rank{'s' if world > 1 else ''}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        path, target = Path(directory) / "config.yaml", Path(directory) / "steps.json"
        path.write_text(to_yaml(config), encoding="utf-8")
        load_config(path, world=world)  # what is wrong is said once, not by every rank
        command = [sys.executable, "-m", "megatron_lm_zh", "parity", str(path), "--steps", str(args.steps)]
        command += ["--record", str(target), *(["--data"] if args.data else [])]
        if code := launch_local(command, world, log_dir=None, environ=os.environ):
            raise SystemExit(code)
        return [StepRecord(**row) for row in json.loads(target.read_text())]


def _record(args: argparse.Namespace, world: int) -> int:
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.ranks import discover

    ranks = discover(os.environ)
    config = load_config(args.config, args.overrides, world=world)
    device = engine.prepare(ranks.local_rank, deterministic=config.run.deterministic)
    from megatron_lm_zh.parity.record import record  # imports megatron: only after it has been prepared

    records = record(config, ranks, device, steps=args.steps, from_data=args.data)
    if ranks.rank == 0:
        args.record.write_text(json.dumps([vars(row) for row in records]))
    return 0
