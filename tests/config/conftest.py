"""A small valid config for the tests of the config room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_lm_zh.errors import UserErrors

TEXT = """\
run:
  dir: runs/test
model:
  num_layers: 4
  hidden_size: 64
  num_attention_heads: 4
  num_query_groups: 2
  seq_length: 64
precision:
  dtype: fp32
data:
  tokenizer: {type: SentencePiece, path: tokenizer}
  train:
    - {path: zh_text_document, weight: 3}
    - {path: en_text_document}
train:
  steps: 100
  micro_batch_size: 2
  global_batch_size: 8
optim:
  lr: 3e-4
schedule:
  kind: cosine
  warmup_steps: 10
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a config file and returns its path."""

    def write_text(text: str = TEXT) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


@pytest.fixture
def complaints(write: Callable[[str], Path]) -> Callable[..., list[str]]:
    """What `load_config` says, a line an error, with the file's folder cut off; [] where it loads."""
    from megatron_lm_zh.config.load import load_config

    def load(text: str = TEXT, overrides: tuple[str, ...] = (), world: int | None = None) -> list[str]:
        path = write(text)
        try:
            load_config(path, overrides, world=world)
        except UserErrors as errors:
            return str(errors).replace(f"{path.parent}/", "").splitlines()
        return []

    return load
