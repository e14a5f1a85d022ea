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
    if not (args.hf_dir / "config.json").is_file():
        mend = "export a run with `mlzh convert to-hf RUN_DIR HF_DIR`"
        raise UserError("no config.json", where=str(args.hf_dir), expected="a Hugging Face model directory", mend=mend)
    if args.max_new_tokens < 1 or args.temperature < 0:
        raise UserError("--max-new-tokens must be at least 1 and --temperature at least 0")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.hf_dir, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(args.hf_dir, local_files_only=True, torch_dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"transformers cannot load it: {error}", where=str(args.hf_dir)) from error
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    ids = tokenizer(args.prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty")
    set_seed(args.seed)
    sampling = {"do_sample": True, "temperature": args.temperature} if args.temperature > 0 else {"do_sample": False}
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=args.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **sampling,
    )
    print(tokenizer.decode(out[0], skip_special_tokens=True))
    return 0
