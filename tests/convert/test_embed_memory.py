"""A model of 600 MB is extended in a small part of one file's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_models import make_hf, run_python
from safetensors.torch import save_file
from support.extended import make_sentencepiece, size_of

from megatron_lm_zh.convert.hf_files import write_json
from megatron_lm_zh.tokenizer.load import load_tokenizer

CODE = """
import sys, threading, time
from pathlib import Path
from megatron_lm_zh.convert.embedding.extend import Options, extend_embedding
from megatron_lm_zh.convert.embedding.methods import METHODS

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done:
        peaks.append(anonymous())
        time.sleep(0.002)

before, peaks, done = anonymous(), [], []
thread = threading.Thread(target=watch)
thread.start()
extend_embedding(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Options(), lambda line: None)
done.append(1)
thread.join()
print(max(peaks) - before)
"""
PADDING, HIDDEN = 40_000, 1152
PIECES = [chr(0x3400 + number) for number in range(6000)]


@pytest.mark.slow
def test_memory_is_a_part_of_one_files(tmp_path: Path) -> None:
    base, new = make_sentencepiece(tmp_path / "tokenizers", PIECES)
    rows = size_of(base) + PADDING
    source = make_hf(tmp_path / "hf", vocab_size=rows, hidden_size=8, num_attention_heads=1, num_key_value_heads=1)
    (source / "model.safetensors").unlink()
    load_tokenizer("SentencePiece", base).save_huggingface(source)
    content = {
        "model.embed_tokens.weight": torch.randn(rows, HIDDEN),
        "model.layers.0.mlp.up_proj.weight": torch.randn(50_000, 1000),
        "lm_head.weight": torch.randn(rows, HIDDEN),
    }
    sizes = []
    for number, (name, tensor) in enumerate(content.items()):
        save_file({name: tensor}, source / f"part-{number}.safetensors")
        sizes.append((source / f"part-{number}.safetensors").stat().st_size)
    index = {name: f"part-{number}.safetensors" for number, name in enumerate(content)}
    write_json(source / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    assert sum(sizes) > 550e6
    grown = int(run_python(CODE, source, new, tmp_path / "out"))
    assert grown < min(sizes) / 2, f"{grown / 1e6:.0f} MB anonymous memory for files of {min(sizes) / 1e6:.0f} MB"
