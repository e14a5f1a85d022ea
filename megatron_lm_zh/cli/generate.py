"""Text from an exported model: the prompt and what the model makes of it.

The prompt is encoded without a beginning-of-sequence token, as the training data are: documents end with an
end-of-document token and begin with none. Without --temperature the likeliest token is taken every time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_lm_zh.errors import UserError

SUMMARY = "text from an exported model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the directory, the prompt and how to sample."""
    parser.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="directory that `mlzh convert to-hf` made")
    parser.add_argument("prompt", metavar="PROMPT", help="text to go on from")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=64, help="most tokens to add (default: 64)")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="seed of sampling (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Prints the prompt and its continuation."""
    if args.max_new_tokens < 1 or args.temperature < 0:
        raise UserError("--max-new-tokens must be at least 1 and --temperature at least 0")
    from megatron_lm_zh.convert.hf_model import generate
    from megatron_lm_zh.runtime.device import detect

    device = detect().torch_device
    sampling = {"tokens": args.max_new_tokens, "temperature": args.temperature, "seed": args.seed}
    print(generate(args.hf_dir, args.prompt, device, **sampling))
    return 0
