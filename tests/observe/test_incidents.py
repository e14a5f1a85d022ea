"""Incidents: one whole line each, whoever writes and whatever a crash left."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from megatron_lm_zh.observe.incidents import Incidents


def test_records_are_appended_with_time_and_details(tmp_path: Path):
    path = tmp_path / "incidents.jsonl"
    Incidents(path).record("nan_loss", step=7, rank=3, message="损失不是数", loss=float("nan"), documents=[1, 2])
    Incidents(path).record("hang", step=8, rank=0, message="no progress")
    first, second = (json.loads(line, parse_constant=str) for line in path.read_text().splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset().total_seconds() == 0
    assert first == {
        "kind": "nan_loss", "step": 7, "rank": 3, "message": "损失不是数", "loss": None, "documents": [1, 2],
    }  # fmt: skip
    assert second["kind"] == "hang"


def test_a_torn_line_stays_by_itself(tmp_path: Path):
    path = tmp_path / "incidents.jsonl"
    path.write_text('{"time": "20')
    Incidents(path).record("nan_loss", step=1, rank=0, message="m")
    assert json.loads(path.read_text().splitlines()[1])["step"] == 1
