"""A small valid config as text."""

from __future__ import annotations

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
