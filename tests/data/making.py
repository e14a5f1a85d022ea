"""Texts and datasets for the tests of this directory."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from megatron_lm_zh.data.indexed import IndexedDatasetWriter
from megatron_lm_zh.data.order.source import Span

SENTENCE = "春 天 的 花 开 了 ， 北京 在 中国 。 one two three water 42 def return x = y + 1 hello"
WORDS = SENTENCE.split()


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Bilingual nonsense."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    """One document a line."""
    path.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def write_dataset(prefix: Path, lengths: list[int], vocab_size: int = 300, seed: int = 0) -> Path:
    """Documents of random ids."""
    rng = np.random.default_rng(seed)
    with IndexedDatasetWriter(prefix, np.dtype(np.uint16)) as writer:
        for length in lengths:
            writer.add_document(rng.integers(0, vocab_size, length))
    return prefix


class Numbers:
    """Samples of a dataset: sample i is [i, i, ...], weighs i and is the whole document i."""

    def __init__(self, length: int, width: int = 1) -> None:
        self.length, self.width = length, width

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full(self.width, index, dtype=np.int64)

    def spans(self, index: int) -> list[Span]:
        return [Span("numbers", index, 0, self.width)]

    def loss_weight(self, index: int) -> float:
        return float(index)
