"""A tiny tokenizer for the tests of this directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import random_texts, write_jsonl

from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.train import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tokenizer of 320 ids."""
    directory = tmp_path_factory.mktemp("tokenizer")
    text = write_jsonl(directory / "text.jsonl", random_texts(300))
    return train_tokenizer([text], directory / "trained", vocab_size=320)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return load_tokenizer("SentencePiece", tokenizer_directory)
