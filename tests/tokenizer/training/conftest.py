"""Text to train on, and a tokenizer of each kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_lm_zh.tokenizer.train import train_tokenizer

SENTENCE = (
    "春天 的 花 开了 ， 北京 在 中国 。 上海 下雨 「 引号 」 one two three water 42 def return x = y + 1 "
    "hello --- ==== aaaa end underwater waterfall"
)
SIZES = {"bpe": 420, "unigram": 380, "byte-level-bpe": 420, "wordpiece": 160}


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of words, and short runs of signs."""
    rng = random.Random(seed)
    words = [*SENTENCE.split(), "", ""]
    sentences = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(count)]
    return sentences + [
        "".join(rng.choice("a b-=花。😀1e<s/>") * rng.randint(1, 7) for _ in range(9)) for _ in range(count)
    ]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(random_texts(400)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(text_file: Path) -> Callable[[str], Path]:
    """The directory of a kind, trained once with no option."""

    def directory(model_type: str) -> Path:
        path = text_file.parent / model_type
        if not path.exists():
            train_tokenizer([text_file], path, vocab_size=SIZES[model_type], model_type=model_type)
        return path

    return directory
