"""Trains the first steps twice, on one rank and in the asked layout, and compares them step by step.

Both worlds run on this machine; nothing is saved. Exit code 4 when they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

SUMMARY = "prove a layout: its first steps against one rank's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("config", help="YAML file of a run, with the layout to prove")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replace or add values of the config")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps to compare (default: 10)")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks of the layout (default: the fewest)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the table to this file, too")
    parser.add_argument("--record", type=Path, metavar="FILE", help=argparse.SUPPRESS)  # what each rank is started with


def run(args: argparse.Namespace) -> int:
    """Starts the two worlds and compares what they recorded, or, as one of their ranks, records."""
    from megatron_lm_zh.runtime.ranks import discover

    ranks = discover(os.environ)
    return _compare(args) if args.record is None else _record(args, ranks.world)


def _compare(args: argparse.Namespace) -> int:
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.errors import EXIT_OK, EXIT_PARITY, UserError
    from megatron_lm_zh.files import write_bytes
    from megatron_lm_zh.parity.compare import StepRecord, compare
    from megatron_lm_zh.runtime.launch import launch_local

    if args.steps < 1:
        raise UserError(f"--steps {args.steps}", expected="at least 1")
    config = load_config(args.config, args.overrides)
    world = args.ranks or config.model_parallel_size
    config = load_config(args.config, args.overrides, world=world)
    alone = ["parallel.tensor=1", "parallel.pipeline=1", "parallel.sequence=false"]
    worlds = {"one rank": (1, alone), "the layout": (world, [])}
    recordings: list[list[StepRecord]] = []
    with tempfile.TemporaryDirectory() as directory:
        for name, (size, overrides) in worlds.items():
            print(f"{name}: {args.steps} steps on {size} rank{'s' if size > 1 else ''}", flush=True)
            target = Path(directory) / f"{len(recordings)}.json"
            command = [sys.executable, "-m", "megatron_lm_zh", "parity", args.config, *args.overrides, *overrides]
            command += ["--steps", str(args.steps), "--record", str(target)]
            code = launch_local(command, size, log_dir=None, environ=os.environ)
            if code:
                return code
            recordings.append([StepRecord(**row) for row in json.loads(target.read_text())])
    comparison = compare(recordings[0], recordings[1], config.precision.dtype)
    print("\n".join(comparison.lines()))
    if args.json is not None:
        write_bytes(args.json, (json.dumps(comparison.to_json(), indent=1) + "\n").encode())
    return EXIT_OK if comparison.agrees else EXIT_PARITY


def _record(args: argparse.Namespace, world: int) -> int:
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.ranks import discover

    ranks = discover(os.environ)
    config = load_config(args.config, args.overrides, world=world)
    device = engine.prepare(ranks.local_rank, deterministic=config.run.deterministic)
    from megatron_lm_zh.parity.record import record  # imports megatron: only after it has been prepared

    records = record(config, ranks, device, steps=args.steps)
    if ranks.rank == 0:
        args.record.write_text(json.dumps([vars(row) for row in records]))
    return 0
