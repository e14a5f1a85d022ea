"""`mlzh pretrain` with bad input: exit code 2, one line, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def pretrain(config: Path, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "RANK"))}
    command = [sys.executable, "-m", "megatron_lm_zh", "pretrain", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ | changed, timeout=300)


BAD: dict[str, tuple[list[str], str]] = {
    "missing-tokenizer": (["data.tokenizer.path=nowhere/tokenizer"], "nowhere/tokenizer"),
    "missing-dataset": (['data.train=[{"path": "nowhere/text_document"}]'], "nowhere/text_document"),
    "small-vocabulary": (["model.vocab_size=100"], "model.vocab_size"),
    "tensor-does-not-divide-heads": (["parallel.tensor=3", "model.num_query_groups=4"], "parallel.tensor"),
    "tensor-does-not-divide-world": (["parallel.tensor=2", "--ranks", "3"], "does not divide 3 ranks"),
    "unknown-key": (["model.num_layer=2"], "did you mean num_layers?"),
    "broken-dataset": (["parallel.tensor=2", "data.valid=[]"], "zh_text_document"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_and_leaves_nothing(name: str, tiny_data: Path, tiny_run: Path) -> None:
    arguments, named = BAD[name]
    config = tiny_run
    if name == "broken-dataset":
        for suffix in ("idx", "json", "bin"):
            content = (tiny_data / f"zh_text_document.{suffix}").read_bytes()
            (tiny_run.parent / f"zh_text_document.{suffix}").write_bytes(content[:-7] if suffix == "bin" else content)
        config.write_text(config.read_text().replace(str(tiny_data / "zh_text"), str(tiny_run.parent / "zh_text")))
    before = sorted(path.name for path in tiny_run.parent.iterdir())
    result = pretrain(config, *arguments)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines) and named in result.stderr
    assert len(lines) == (3 if name == "tensor-does-not-divide-heads" else 1), "one line a mistake"
    assert sorted(path.name for path in tiny_run.parent.iterdir()) == before
