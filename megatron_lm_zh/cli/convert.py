"""Checkpoints to and from Hugging Face directories.

CHECKPOINT is a checkpoint directory or a run directory (then its newest complete checkpoint). The layout that trained
(tensor, pipeline) does not matter. The output must not exist yet; it is whole when it is there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "checkpoints to and from Hugging Face directories"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds to-hf and from-hf."""
    directions = parser.add_subparsers(dest="direction", required=True, metavar="to-hf|from-hf")
    to_hf = directions.add_parser("to-hf", help="checkpoint or run directory to a Hugging Face directory")
    to_hf.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint or run directory")
    to_hf.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="directory to make")
    from_hf = directions.add_parser("from-hf", help="Hugging Face directory to a checkpoint of weights")
    from_hf.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="directory with config.json and safetensors")
    from_hf.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="directory to make")


def run(args: argparse.Namespace) -> int:
    """Converts and says where the result lies."""
    if args.direction == "to-hf":
        from megatron_lm_zh.convert.to_hf import to_hf

        to_hf(args.checkpoint, args.hf_dir)
        print(f"wrote {args.hf_dir}")
    else:
        from megatron_lm_zh.convert.from_hf import from_hf

        from_hf(args.hf_dir, args.checkpoint)
        print(f"wrote {args.checkpoint}")
    return 0
