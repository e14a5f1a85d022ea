"""Mean loss of a text under a run's newest checkpoint or an exported model, over the same windows whichever it is.

Compare models of different tokenizers by bits per byte or per character alone; the loss (nats per token) and the
perplexity depend on how long the tokens are. --json says which tokenizer it was: equal fingerprints, comparable losses.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from megatron_lm_zh.errors import UserError

SUMMARY = "loss, perplexity and bits per character of a dataset or JSONL"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", metavar="RUN_DIR_OR_HF_DIR", type=Path, help="a run, a checkpoint, or an HF directory")
    parser.add_argument("--data", required=True, metavar="P", help="prefix of a .bin/.idx pair, or a JSONL file")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows a forward pass (default: 8)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file, too")


def run(args: argparse.Namespace) -> int:
    """Scores the text and prints what it comes to."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}", expected="at least 1")
    from megatron_lm_zh.data.text_size import TextMeter
    from megatron_lm_zh.files import write_bytes
    from megatron_lm_zh.observe.rows import ValidRow

    is_hf = (args.model / "config.json").is_file()
    step, tokenizer, windows, nats = _score_hf(args) if is_hf else _score_run(args)
    text = TextMeter(tokenizer).count(windows.targets)
    row = ValidRow.from_totals(
        step,
        Path(args.data).name,
        nats=nats,
        tokens=len(windows.targets),
        text_bytes=text.bytes,
        text_chars=text.characters,
        kind="test",
    )
    bits = [
        f"{name} {value:.4f}"
        for name, value in (("bits/byte", row.bits_per_byte), ("bits/char", row.bits_per_char))
        if value is not None
    ]
    print(
        f"{row.source}: {', '.join(bits)}; of this tokenizer alone: lm loss {row.lm_loss:.6f}, ppl {row.ppl:.2f}, "
        f"{row.tokens:,} tokens"
    )
    if args.json is not None:
        facts = row.to_json() | {"model": str(args.model), "data": args.data, "tokenizer": tokenizer.fingerprint}
        facts |= {"bytes": text.bytes}
        write_bytes(args.json, (json.dumps(facts | {"characters": text.characters}, indent=1) + "\n").encode())
    return 0


def _score_hf(args: argparse.Namespace) -> tuple:
    from megatron_lm_zh.convert.hf_model import load_model, score
    from megatron_lm_zh.data.windows import read_windows
    from megatron_lm_zh.runtime.device import detect
    from megatron_lm_zh.tokenizer.load import load_tokenizer

    tokenizer = load_tokenizer("HuggingFace", args.model)
    model = load_model(args.model, detect().torch_device)
    windows = read_windows(args.data, tokenizer, model.config.max_position_embeddings)
    return 0, tokenizer, windows, score(model, windows, batch_size=args.batch_size)


def _score_run(args: argparse.Namespace) -> tuple:
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.data.windows import read_windows
    from megatron_lm_zh.run_directory import CONFIG, RunDirectory, resolve_checkpoint, step_of
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.ranks import discover
    from megatron_lm_zh.tokenizer.load import load_tokenizer

    checkpoint = resolve_checkpoint(args.model)
    config = load_config(checkpoint / CONFIG)
    copy = RunDirectory(checkpoint.parents[1]).tokenizer
    asked = config.data.tokenizer
    tokenizer = load_tokenizer("HuggingFace", copy) if copy.is_dir() else load_tokenizer(asked.type, asked.path)
    windows = read_windows(args.data, tokenizer, config.model.max_position_embeddings)
    ranks = discover(os.environ)
    device = engine.prepare(ranks.local_rank)
    from megatron_lm_zh.train.score import score_checkpoint  # imports megatron: only after it has been prepared

    nats = score_checkpoint(config, checkpoint, windows, ranks, device, batch_size=args.batch_size)
    return step_of(checkpoint), tokenizer, windows, nats
