"""A checkpoint of any layout to a Hugging Face directory: weights, config.json, tokenizer.

The output must not exist yet; it is whole when it is there. A command that was stopped is typed again: it goes on from
the files that are done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_lm_zh.cli.convert_tools import common

SUMMARY = "checkpoint or run directory to a Hugging Face directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint or run directory")
    parser.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="directory to make")
    common.add_plain(parser)
    common.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Converts and says where the result lies."""
    from megatron_lm_zh.convert.to_hf import ToHF
    from megatron_lm_zh.files import check_new_directory

    check_new_directory(args.hf_dir)
    job = ToHF(args.checkpoint, common.asked_of(args))
    return common.convert(
        args,
        args.hf_dir,
        job.plan,
        lambda report: job.run(args.hf_dir, workers=args.workers, on_progress=report),
    )
