"""A training checkpoint rewritten so that any layout resumes from it, weights and optimizer, on one machine.

What `checkpoint.distrib_optim_sharding_type: dp_reshardable` saved rank by rank becomes whole tensors; small files are
merged; the vocabulary can be padded anew. To train on, make OUTPUT `RUN_DIR/checkpoints/iter_N` of a run directory.
The output must not exist yet; it is whole when it is there. A command that was stopped is typed again: it goes on from
the files that are done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_lm_zh.cli.convert_tools import common

SUMMARY = "training checkpoint for another layout, weights and optimizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint or run directory")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="checkpoint directory to make")
    parser.add_argument("--weights-only", action="store_true", help="leave the optimizer out")
    parser.add_argument(
        "--make-vocab-size-divisible-by", type=int, metavar="N", help="pad the vocabulary to a multiple of N"
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help="ids that there are, where the config has no number"
    )
    common.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Rewrites and says where the result lies."""
    from megatron_lm_zh.convert.reshard import Reshard

    job = Reshard(
        args.checkpoint,
        weights_only=args.weights_only,
        make_vocab_size_divisible_by=args.make_vocab_size_divisible_by,
        vocab_size=args.vocab_size,
    )
    job.check_name(args.output)
    return common.convert(
        args,
        args.output,
        job.plan,
        lambda report: job.run(args.output, workers=args.workers, on_progress=report),
    )
