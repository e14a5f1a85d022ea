"""Trains a model from a config file, or resumes it from its run directory.

Under torchrun, srun or mpirun this process is one rank of the world that they started. Started alone, it starts the
ranks itself on this machine: the smallest world that the layout allows, or --ranks N.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

SUMMARY = "train or resume: raw datasets to checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("config", help="YAML file; its fields: mlzh config explain")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replace or add values of the config")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks to start on this machine (default: the fewest)")
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="HF_DIR",
        help="Hugging Face model whose weights the run begins with; ignored when it resumes",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although this key differs from the checkpoint's config and alters the result (may be repeated)",
    )


def run(args: argparse.Namespace) -> int:
    """Loads the config, then trains as one rank or starts the ranks that do."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.data.inputs import open_inputs
    from megatron_lm_zh.errors import UserError
    from megatron_lm_zh.run_directory import RunDirectory
    from megatron_lm_zh.runtime.launch import launch_local
    from megatron_lm_zh.runtime.ranks import discover

    ranks = discover(os.environ)
    if ranks.launcher != "alone" and args.ranks is not None:
        raise UserError(f"--ranks under {ranks.launcher}", mend=f"let {ranks.launcher} start the ranks, or not at all")
    if ranks.launcher == "alone":
        world = args.ranks or load_config(args.config, args.overrides).smallest_world
    else:
        world = ranks.world
    config = load_config(args.config, args.overrides, world=world)
    if ranks.launcher == "alone" and world > 1:
        open_inputs(config)  # what is wrong with them is said here, before there are ranks and log files
        command = [sys.executable, "-m", "megatron_lm_zh", "pretrain", args.config, *args.overrides]
        command += [word for key in args.allow_change for word in ("--allow-change", key)]
        command += ["--init-from", str(args.init_from)] if args.init_from else []
        return launch_local(command, world, log_dir=RunDirectory(Path(config.run.dir)).logs, environ=os.environ)

    from megatron_lm_zh.runtime import engine

    device = engine.prepare(ranks.local_rank, deterministic=config.run.deterministic)
    from megatron_lm_zh.train.pretrain import pretrain  # imports megatron: only after it has been prepared

    pretrain(config, ranks, device, allowed=args.allow_change, init_from=args.init_from)
    return 0
