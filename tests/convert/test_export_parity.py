"""A checkpoint that a TP2 x PP2 run saved, with its optimizer, exports to a model that gives the same logits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from hf_models import TEXT, logits, make_tokenizer, mlzh, weights
from transformers import AutoTokenizer

from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.runtime.launch import launch_local

CONFIG = """
run: {{dir: {run}}}
model: {{num_layers: 4, hidden_size: 64, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 96,
  seq_length: 64, max_position_embeddings: 1024, vocab_size: {vocab}, tie_embeddings: {tied}, rotary_base: 20000}}
parallel: {{tensor: 2, pipeline: 2, sequence: true}}
precision: {{dtype: fp32}}
data: {{tokenizer: {{type: HuggingFace, path: {run}/gone}}, train: [{{path: {run}/none}}]}}
train: {{steps: 5, micro_batch_size: 2, global_batch_size: 4}}
optim: {{lr: 0.01, use_distributed_optimizer: true}}
schedule: {{kind: constant}}
"""


@pytest.mark.dist
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_equal_those_of_the_run(tmp_path: Path, tied: bool) -> None:
    run = tmp_path / "run"
    tokenizer = make_tokenizer(run / "tokenizer")
    (run / "config.yaml").write_text(CONFIG.format(run=run, vocab=len(tokenizer), tied=str(tied).lower()))
    text = (" ".join(TEXT) * 20)[:20000]
    ids = torch.tensor([tokenizer(text)["input_ids"][:1000]])
    assert ids.shape == (1, 1000)
    torch.save(ids, tmp_path / "ids.pt")
    script = Path(__file__).with_name("train_and_save.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), str(run), str(tmp_path / "ids.pt")]
    assert launch_local(command, 4, log_dir=tmp_path / "logs", environ=environment) == 0

    to_hf(run, tmp_path / "hf")

    ours = torch.load(run / "logits.pt")[..., : len(tokenizer)]
    theirs = logits(tmp_path / "hf", ids)
    assert ours.std() > 0.1  # the weights have moved from where they began
    difference = (ours - theirs).abs().max().item()
    print(f"largest logit difference over {ids.shape[1]} tokens: {difference:.2e}")
    assert difference <= 1e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    assert ("lm_head.weight" in weights(tmp_path / "hf")) is not tied
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert exported(text)["input_ids"] == tokenizer(text)["input_ids"]

    done = mlzh("generate", tmp_path / "hf", "The cat", "--max-new-tokens", 5)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The cat")
