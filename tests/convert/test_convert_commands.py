"""The commands and their twins convert, are light until they run, and export a run directory with its tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hf_models import make_hf, make_tokenizer, mlzh, run_python, same_bits, weights
from transformers import AutoTokenizer

from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.megatron_files import MODEL_FILE
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = """
run: {{dir: {run}}}
model: {{num_layers: 3, hidden_size: 48, num_attention_heads: 6, num_query_groups: 2, ffn_hidden_size: 80,
  seq_length: 96, vocab_size: {vocab}}}
data: {{tokenizer: {{type: HuggingFace, path: {tokenizer}}}, train: [{{path: none}}]}}
train: {{steps: 5, global_batch_size: 1}}
optim: {{lr: 0.01}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with two complete checkpoints, the newer one under its number, and an unfinished newer one."""
    run = tmp_path / "run"
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    hf = make_hf(tmp_path / "hf", vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=None)
    for step in (90, 100):
        checkpoint = run / "checkpoints" / f"iter_{step:07d}"
        from_hf(hf, checkpoint)
        (checkpoint / MODEL_FILE).unlink()
        config = CONFIG.format(run=run, vocab=len(tokenizer), tokenizer=tmp_path / "tokenizer")
        (checkpoint / "config.yaml").write_text(config)
        (checkpoint / "manifest.json").write_text(json.dumps({"step": step}))
    next((run / "checkpoints" / "iter_0000090").glob("*.distcp")).unlink()
    (run / "checkpoints" / "iter_0000110").mkdir()
    return run


def test_a_run_directory_exports_its_newest_complete_checkpoint(run: Path, tmp_path: Path) -> None:
    make_tokenizer(run / "tokenizer")
    done = mlzh("convert", "to-hf", run, tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path / 'out'}\n"), done.stderr
    assert same_bits(weights(tmp_path / "hf"), weights(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, 0)
    for path in (run / "tokenizer").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()

    first = mlzh("generate", tmp_path / "out", "The cat", "--max-new-tokens", 8)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("The cat")
    warm = mlzh("generate", tmp_path / "out", "The cat", "--max-new-tokens", 8, "--temperature", 2, "--seed", 1)
    assert warm.stdout.startswith("The cat") and warm.stdout != first.stdout


def test_the_tokenizer_is_made_from_the_config_where_the_run_has_no_copy(run: Path, tmp_path: Path) -> None:
    to_hf(run, tmp_path / "out")
    text = "The cat 天下"
    expected = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == expected


def test_without_any_tokenizer_the_paths_are_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        to_hf(run, tmp_path / "out")
    assert str(run / "tokenizer") in str(caught.value) and str(tmp_path / "tokenizer") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_larger_than_the_model(run: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(run / "tokenizer")
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(run / "tokenizer")
    with pytest.raises(UserError, match=f"has {len(tokenizer)} ids, the model {len(tokenizer) - 1}"):
        to_hf(run, tmp_path / "out")


def test_the_twins(tmp_path: Path) -> None:
    hf = make_hf(tmp_path / "hf")
    for script, source, output in (("from_hf", "hf", "megatron"), ("to_hf", "megatron", "back")):
        command = [sys.executable, ROOT / "checkpoints_convert" / f"{script}.py", tmp_path / source, tmp_path / output]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    assert same_bits(weights(hf), weights(tmp_path / "back"))


def test_help_is_light() -> None:
    code = """
import argparse, sys
from megatron_lm_zh.cli import convert, generate
for command in (convert, generate):
    command.add_arguments(argparse.ArgumentParser())
print([name for name in ("torch", "megatron", "transformers", "numpy") if name in sys.modules])
"""
    assert run_python(code) == "[]\n"


def test_converting_needs_no_megatron(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.to_hf import to_hf
from_hf(Path(sys.argv[1]), Path(sys.argv[2]))
to_hf(Path(sys.argv[2]), Path(sys.argv[3]))
import torch.distributed
print("megatron" in sys.modules, torch.distributed.is_initialized())
"""
    hf = make_hf(tmp_path / "hf")
    assert run_python(code, hf, tmp_path / "megatron", tmp_path / "back") == "False False\n"
