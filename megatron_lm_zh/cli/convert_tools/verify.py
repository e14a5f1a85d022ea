"""Compares two models, each a Hugging Face directory, a checkpoint or a run directory: weights, then logits on a text.

Weights are compared tensor by tensor in Hugging Face's terms, bit for bit unless --weights-tolerance allows more. Then
each side computes the logits of the same ids in fp32, in a process of its own: transformers, or megatron-core on this
machine's device. The first layer that differs is named. The exit code is 0 where both agree, 1 where they do not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_lm_zh.cli.convert_tools import common
from megatron_lm_zh.errors import UserError

if TYPE_CHECKING:
    from megatron_lm_zh.convert.states import LogitsReport, States
    from megatron_lm_zh.convert.verify import Side, WeightsReport

SUMMARY = "compare two models: weights, and logits on a text"
EXIT_DIFFERENT = 1
TEXT = (
    "The old bridge crosses the river where it is narrow. In spring the water stands high, and nobody fishes there; in "
    "autumn one can walk from stone to stone. 春天来了，河水涨到石阶上，村里的人都在岸边说话。孩子们数着船，"
    "老人们说起从前的洪水：那一年是1954年，水退了以后，田里留下厚厚的泥。"
    "Prices rose by 3.7% between May and June, said the report, which nobody had read to its end. "
    "def area(r): return 3.14159 * r ** 2  # 圆的面积\n"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("a", metavar="A", type=Path, help="HF directory, checkpoint or run directory")
    parser.add_argument("b", metavar="B", type=Path, nargs="?", help="HF directory, checkpoint or run directory")
    parser.add_argument("--weights-only", action="store_true", help="run neither model")
    parser.add_argument("--text", metavar="FILE", type=Path, help="UTF-8 text (default: a paragraph of two languages)")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="at most so many of it (default: 256)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="T", help="largest difference of a logit (default: 1e-4)"
    )
    parser.add_argument(
        "--weights-tolerance",
        type=float,
        default=0.0,
        metavar="T",
        help="largest difference of a weight, whatever the dtypes (default: 0, the same bits)",
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the report to this file, too")
    common.add_workers(parser)
    common.add_plain(parser)
    for hidden in ("--record", "--ids", "--side-config"):  # for the processes that compute the logits
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Compares and prints the report."""
    if args.record is not None:
        return _record(args)
    if args.b is None:
        raise UserError("one model", expected="two: mlzh convert verify A B")
    if args.tokens < 1:
        raise UserError(f"--tokens {args.tokens}", expected="at least 1")
    from megatron_lm_zh.cli.data_tools.common import write_json
    from megatron_lm_zh.convert.legacy.find import NOTHING_ASKED
    from megatron_lm_zh.convert.verify import Side

    asked = common.asked_of(args)
    sides = Side(args.a, asked), Side(args.b, asked)
    if asked != NOTHING_ASKED and not any(side.is_plain for side in sides):
        raise UserError("both models say themselves what they are", mend="leave the flags of Megatron-LM's out")
    weights = _weights(args, *sides)
    print("\n".join(weights.lines()), flush=True)
    logits = None if args.weights_only else _logits(args, sides)
    if logits is not None:
        print("\n".join(logits.lines()))
    agrees = weights.agrees and (logits is None or logits.agrees)
    facts = {"a": str(args.a), "b": str(args.b), "agrees": agrees, "weights": weights.to_json()}
    write_json(args.json, facts | {"logits": logits.to_json() if logits else None})
    return 0 if agrees else EXIT_DIFFERENT


def _weights(args: argparse.Namespace, a: Side, b: Side) -> WeightsReport:
    from megatron_lm_zh.cli.data_tools.common import progress_line
    from megatron_lm_zh.convert.streaming import default_workers
    from megatron_lm_zh.convert.verify import compare_weights

    report = progress_line("tensors") if sys.stderr.isatty() else lambda done, total: None
    workers = args.workers or default_workers()
    return compare_weights(a, b, tolerance=args.weights_tolerance, workers=workers, on_progress=report)


def _logits(args: argparse.Namespace, sides: tuple[Side, Side]) -> LogitsReport:
    from megatron_lm_zh.convert.hf_states import ids_of
    from megatron_lm_zh.convert.states import compare_states
    from megatron_lm_zh.convert.verify import random_ids

    tokens = min(args.tokens, *(side.model.max_position_embeddings for side in sides))
    text = _text(args.text)
    found = [side for side in sides if any(side.tokenizer.glob("tokenizer*"))]
    ids = ids_of(found[0].tokenizer, text, tokens) if found else None
    if ids is None:
        print("no tokenizer on either side: the ids are random")
        ids = random_ids([side.model for side in sides], tokens)
    largest = min(side.model.vocab_size or 0 for side in sides)
    if int(ids.max()) >= largest:
        where = str(found[0].tokenizer)
        raise UserError(f"the tokenizer gives id {int(ids.max())}", where=where, expected=f"less than {largest}")
    with tempfile.TemporaryDirectory() as scratch:
        a, b = (_states(side, ids, Path(scratch)) for side in sides)
    return compare_states(a, b, args.tolerance)


def _text(path: Path | None) -> str:
    if path is None:
        return TEXT * 4
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"unreadable: {error}", where=str(path)) from error


def _states(side: Side, ids: object, scratch: Path) -> States:
    """What a side computes, in a process of its own; SystemExit with its code where that fails."""
    import torch

    from megatron_lm_zh.convert.model_file import run_config_of
    from megatron_lm_zh.convert.states import States

    ids_file, target, config = scratch / "ids.pt", scratch / "states.pt", scratch / "config.yaml"
    torch.save(ids, ids_file)
    command = [sys.executable, "-m", "megatron_lm_zh", "convert", "verify", str(side.checkpoint)]
    command += ["--record", str(target), "--ids", str(ids_file)]
    if not side.is_hf:
        config.write_text(run_config_of(side.model, "fp32"), encoding="utf-8")
        command += ["--side-config", str(config)]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)
    return States.load(target)


def _record(args: argparse.Namespace) -> int:
    """Computes the states of one side and writes them: the whole of a process."""
    import torch

    ids = torch.load(args.ids, weights_only=True)
    if args.side_config is None:
        from megatron_lm_zh.convert.hf_states import hf_states

        hf_states(args.a, ids, torch.float32).save(args.record)
        return 0
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.convert.legacy.find import Asked, find_plain, open_plain
    from megatron_lm_zh.convert.megatron_files import MegatronWeights
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.ranks import discover

    config = load_config(args.side_config)
    ranks = discover(os.environ)
    device = engine.prepare(ranks.local_rank)
    from megatron_lm_zh.train.states import checkpoint_states  # imports megatron: only after it has been prepared

    plain = find_plain(args.a)
    source = MegatronWeights(args.a) if plain is None else open_plain(plain, Asked(config=args.side_config)).source
    checkpoint_states(config, source, ids, ranks, device).save(args.record)
    return 0
