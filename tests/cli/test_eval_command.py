"""`mlzh eval` gives a run and its export the same figures over the same windows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest


def mlzh(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_lm_zh", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.dist
def test_a_run_and_its_export_agree(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    # 400 ids in 512 rows: the rows that only pad the vocabulary must not count on either side.
    done = mlzh("pretrain", str(tiny_run), "train.steps=8", "parallel.tensor=2")
    assert done.returncode == 0, done.stderr
    assert mlzh("convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "hf")).returncode == 0
    figures = {}
    for model in ("run", "hf"):
        for data in ("zh_text_document", "zh.jsonl"):
            out = tmp_path / f"{model}_{data}.json"
            words = ["--data", str(tiny_data / data), "--batch-size", "64", "--json", str(out)]
            done = mlzh("eval", str(tmp_path / model), *words)
            assert done.returncode == 0, done.stderr
            figures[model, data] = json.loads(out.read_text())
    reference = figures["run", "zh_text_document"]
    for row in figures.values():
        assert row["tokens"] == reference["tokens"]
        assert row["lm_loss"] == pytest.approx(reference["lm_loss"], abs=1e-5)
        assert row["bits_per_char"] == pytest.approx(reference["bits_per_char"], abs=1e-5)
        assert row["tokenizer"] == reference["tokenizer"]
        assert row["ppl"] == pytest.approx(math.exp(row["lm_loss"]))
        assert row["bits_per_byte"] * row["bytes"] == pytest.approx(row["bits_per_char"] * row["characters"])
    text = sum(len(json.loads(line)["text"]) for line in (tiny_data / "zh.jsonl").read_text().splitlines())
    first_token = text - reference["characters"]  # nothing predicts it; all other characters are counted
    assert 0 < first_token < 20


def test_bad_input_is_one_line(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model in ("empty", "missing"):
        done = mlzh("eval", str(tmp_path / model), "--data", str(tiny_data / "zh_text_document"))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert str(tmp_path / model) in done.stderr
