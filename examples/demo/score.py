"""Exact match of greedy generation on held-out facts, by relation, of an exported model or of its untrained twin."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

NEW_TOKENS = 24
ENDINGS = "。."


def read_prompts(path: Path) -> list[dict[str, str]]:
    """Rows with `prompt`, `answer`, `relation` and `kind`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_exact(continuation: str, answer: str) -> bool:
    """Whether the text after a prompt is the answer and nothing else, but for its ending."""
    return continuation.strip().rstrip(ENDINGS).strip() == answer


@torch.no_grad()
def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(prompt, greedy continuation up to the end of the document), prompts of one length in one batch."""
    end = tokenizer.eos_token_id
    by_length: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
    for prompt in prompts:
        # a document begins after the end of another one
        ids = [end, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        by_length[len(ids)].append((prompt, ids))
    for length, rows in by_length.items():
        batch = torch.tensor([ids for _, ids in rows])
        out = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        for (prompt, _), ids in zip(rows, out[:, length:].tolist(), strict=True):
            yield prompt, tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)


def load(directory: Path, *, untrained: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The exported model, or one of the same config with random weights, and its tokenizer."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if untrained:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory, local_files_only=True))
    else:
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    return model.float().eval(), tokenizer


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Exact matches over all prompts, by relation and by kind, as {name: [right, asked]}, and every answer given."""
    given = dict(continuations(model, tokenizer, [row["prompt"] for row in rows]))
    right, asked = Counter[str](), Counter[str]()
    for row in rows:
        for name in ("all", row["kind"], row["relation"]):
            asked[name] += 1
            right[name] += is_exact(given[row["prompt"]], row["answer"])
    counts = {name: [right[name], asked[name]] for name in asked}
    return {"counts": counts, "exact_match": right["all"] / asked["all"], "given": given}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("hf_dir", type=Path, metavar="HF_DIR", help="exported model")
    parser.add_argument("prompts", type=Path, metavar="HELD_OUT.jsonl", help="what corpus.py wrote")
    parser.add_argument("--untrained", action="store_true", help="take random weights instead of the exported ones")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file, too")
    args = parser.parse_args()
    result = score(*load(args.hf_dir, untrained=args.untrained), read_prompts(args.prompts))
    if args.json:
        args.json.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name, (right, asked) in result["counts"].items():
        print(f"{name:<12}{right:>5} of {asked:<5}{right / asked:>7.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
