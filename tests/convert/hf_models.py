"""Small Hugging Face models, tokenizers and run directories that the conversion tests use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = ["The cat sat on the mat.", "天下大势，分久必合，合久必分。", "def f(x):\n    return x + 1\n"] * 4
SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 131,
    "max_position_embeddings": 96,
}


def make_hf(directory: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """Saves a random Llama of transformers' own making; norms are random, too."""
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"tie_word_embeddings": tied} | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.1)
    model.to(dtype).save_pretrained(directory)
    return directory


def make_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Saves a byte-level BPE with an end-of-text token and few pieces."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    tokenizer.save_pretrained(directory)
    return tokenizer


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Hugging Face directory."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names, shapes, dtypes and bits."""
    return one.keys() == two.keys() and all(
        tensor.dtype == two[name].dtype
        and tensor.shape == two[name].shape
        and torch.equal(tensor.contiguous().view(torch.uint8), two[name].contiguous().view(torch.uint8))
        for name, tensor in one.items()
    )


def logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    """[b, s, vocab] logits in fp32; loading must find every key in its place."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    with torch.no_grad():
        return model(ids).logits


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    return json.loads(path.read_text(encoding="utf-8"))


def run_python(code: str, *arguments: object) -> str:
    """Runs Python in a process of its own, as megatron-core and transformers must not meet; returns its output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mlzh(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the console script."""
    command = [sys.executable, "-m", "megatron_lm_zh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
