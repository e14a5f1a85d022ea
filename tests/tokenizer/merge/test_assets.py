"""The bounds that the figures of docs/tokenizer.md keep, where the real tokenizers lie beside the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared/data"
BENCHMARK = ROOT / "benchmarks/vocabulary_extension.py"
MOST = {
    "Llama 2: donor repaired": 1.188,
    "Llama 2: donor repaired, filled up": 1.13,
    "Llama 2: learnt, --joins base": 1.03,
    "Llama 2: learnt, --joins punctuation": 0.97,
    "Qwen2: learnt": 0.917,
    "GPT-2: learnt": 1.04,
}
"""Tokens a Han character on split 1, which is harder than most."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not (DATA / "tok/llama2/tokenizer.model").is_file():
        pytest.skip("shared/data is not beside the repository")
    output = tmp_path_factory.mktemp("figures") / "figures.json"
    command = [sys.executable, BENCHMARK, "--assets", DATA, "--no-timing", "--json", output]
    subprocess.run(list(map(str, command)), check=True)
    return {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}


def test_the_naive_merge(rows: dict[str, Any]) -> None:
    naive = rows["Llama 2: naive"]
    assert naive["added"] == 17_953
    assert (naive["unreachable_added"], naive["unreachable_base"], naive["multi_digit"]) == (345, 194, 365)
    assert naive["changed"]["english"] == 1488
    assert all(naive["disagreements"].values())


@pytest.mark.parametrize("name", MOST)
def test_the_constructive_merge(rows: dict[str, Any], name: str) -> None:
    row = rows[name]
    assert row["tokens_per_han"] <= MOST[name]
    assert row["unreachable_added"] == row["unreachable_base"] == 0
    assert row["multi_digit"] == row["script_crossing"] == 0
    assert not any(row["disagreements"].values())
    assert row["round_trip_failures"] == dict.fromkeys(row["lines"], 0)
    assert row["changed"]["code"] == 0
    assert row["changed"]["english"] == ("GPT-2" in name)  # one line of it holds a Chinese character
    assert "donor" in name or row["used_added"] >= 0.92


def test_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--assets", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"--assets {tmp_path} does not hold tok/llama2/tokenizer.model, tok/" in done.stderr
