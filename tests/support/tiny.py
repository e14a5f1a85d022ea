"""Tiny bilingual data and the config of a run that trains on it in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_NAMES = ("小明", "老王", "李老师", "Alice", "Bob", "the cat")
_VERBS = ("喜欢", "看见了", "想起", "likes", "saw", "remembers")
_THINGS = ("苹果", "长江", "一本书", "apples", "a river", "the old book")


def documents(count: int, seed: int) -> list[str]:
    """Short made-up texts in Chinese and English."""
    draw = random.Random(seed)
    sentence = lambda: f"{draw.choice(_NAMES)} {draw.choice(_VERBS)} {draw.choice(_THINGS)} {draw.randint(0, 999)}。"  # noqa: E731
    return [" ".join(sentence() for _ in range(draw.randint(3, 20))) for _ in range(count)]


def make_tiny_data(directory: Path) -> None:
    """Writes `zh.jsonl`, `en.jsonl`, `tokenizer/` and the datasets `zh_text_document` and `en_text_document`."""
    from megatron_lm_zh.cli.main import main_for_arguments

    for number, name in enumerate(("zh", "en")):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents(300, seed=number)]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    inputs = [str(directory / "zh.jsonl"), str(directory / "en.jsonl")]
    tokenizer = str(directory / "tokenizer")
    _check(
        main_for_arguments(
            [
                "tokenizer",
                "train",
                "--input",
                *inputs,
                "--vocab-size",
                "400",
                "--model-type",
                "bpe",
                "--output",
                tokenizer,
            ]
        )
    )
    for name in ("zh", "en"):
        arguments = ["--input", str(directory / f"{name}.jsonl"), "--output-prefix", str(directory / name)]
        arguments += ["--tokenizer-type", "SentencePiece", "--tokenizer-model", tokenizer, "--append-eod"]
        _check(main_for_arguments(["preprocess", *arguments]))


def tiny_config(data: Path, run: Path) -> dict[str, Any]:
    """A config as YAML would hold it: 4 layers, hidden 64, GQA, fp32, 8 sequences of 32 tokens a step, 20 steps."""
    return {
        "run": {"dir": str(run)},
        "model": {
            "num_layers": 4,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "seq_length": 32,
        },
        "precision": {"dtype": "fp32"},
        "data": {
            "tokenizer": {"type": "SentencePiece", "path": str(data / "tokenizer")},
            "train": [
                {"path": str(data / "zh_text_document"), "weight": 0.7},
                {"path": str(data / "en_text_document"), "weight": 0.3},
            ],
            "split": "90,5,5",
        },
        "train": {"steps": 20, "micro_batch_size": 2, "global_batch_size": 8},
        "optim": {"lr": 0.001, "clip_grad": 0.5},
        "schedule": {"kind": "cosine", "warmup_steps": 3},
        "checkpoint": {"interval": 10},
        "evaluate": {"interval": 10, "batches": 2},
        "log": {"interval": 1, "tensorboard": False},
    }


def _check(code: int) -> None:
    assert code == 0, f"exit code {code}"
