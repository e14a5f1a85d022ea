"""A Hugging Face directory to a checkpoint of weights, which loads at any layout.

The output must not exist yet; it is whole when it is there. A command that was stopped is typed again: it goes on from
the files that are done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_lm_zh.cli.convert_tools import common

SUMMARY = "Hugging Face directory to a checkpoint of weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="directory with config.json and safetensors")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="directory to make")
    common.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Converts and says where the result lies."""
    from megatron_lm_zh.convert.from_hf import FromHF
    from megatron_lm_zh.files import check_new_directory

    check_new_directory(args.checkpoint)
    job = FromHF(args.hf_dir)
    return common.convert(
        args,
        args.checkpoint,
        job.plan,
        lambda report: job.run(args.checkpoint, workers=args.workers, on_progress=report),
    )
