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
    plain = parser.add_argument_group("for checkpoints of Megatron-LM's own, which do not say it")
    plain.add_argument("--family", metavar="NAME", help="model family, where the weights fit several")
    plain.add_argument("--vocab-size", type=int, metavar="N", help="ids that there are; more rows are padding")
    plain.add_argument("--config", type=Path, metavar="YAML", help="config whose model section it is")
    plain.add_argument(
        "--hf-config", type=Path, metavar="HF_DIR", help="directory of the same model: config, tokenizer"
    )
    common.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Converts and says where the result lies."""
    from megatron_lm_zh.convert.legacy.find import Asked
    from megatron_lm_zh.convert.output import check_output
    from megatron_lm_zh.convert.to_hf import ToHF

    check_output(args.hf_dir)
    asked = Asked(args.family, args.vocab_size, args.config, args.hf_config)
    job = ToHF(args.checkpoint, asked)
    return common.convert(
        args,
        args.hf_dir,
        job.plan,
        lambda report: job.run(args.hf_dir, workers=args.workers, on_progress=report),
    )
