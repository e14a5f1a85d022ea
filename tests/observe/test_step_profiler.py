"""The profiler: the steps that were asked for, in files that are whole, and nothing else."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from megatron_lm_zh.observe.profiler import StepProfiler


def run_steps(profiler: StepProfiler, first: int, last: int, fail_at: int | None = None) -> None:
    with profiler:
        for n in range(first, last + 1):
            with profiler.step(n):
                torch.ones(8, 8) @ torch.ones(8, 8)
                if n == fail_at:
                    raise RuntimeError("step failed")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def traced_steps(path: Path) -> set[str]:
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    return {event["name"] for event in events if str(event.get("name")).startswith("step ")}


def test_the_trace_holds_exactly_the_steps_asked_for(tmp_path: Path):
    run_steps(StepProfiler((3, 4), tmp_path / "logs", 2), 1, 6)
    assert names(tmp_path / "logs") == ["trace_rank_0002_steps_3_4.json.gz"]
    assert traced_steps(tmp_path / "logs" / "trace_rank_0002_steps_3_4.json.gz") == {"step 3", "step 4"}


def test_nothing_is_written_where_nothing_was_asked_for(tmp_path: Path):
    run_steps(StepProfiler(None, tmp_path / "logs", 0), 1, 3)
    run_steps(StepProfiler((7, 9), tmp_path / "logs", 0), 1, 3)
    assert names(tmp_path / "logs") == []


def test_a_run_that_resumes_or_ends_or_fails_within_the_steps_writes_those_it_did(tmp_path: Path):
    run_steps(StepProfiler((2, 9), tmp_path, 0), 4, 5)
    with pytest.raises(RuntimeError, match="step failed"):
        run_steps(StepProfiler((2, 9), tmp_path, 1), 1, 9, fail_at=3)
    assert names(tmp_path) == ["trace_rank_0000_steps_4_5.json.gz", "trace_rank_0001_steps_2_3.json.gz"]
    assert traced_steps(tmp_path / "trace_rank_0001_steps_2_3.json.gz") == {"step 2", "step 3"}


def test_the_memory_recorder_is_open_for_the_same_steps(tmp_path: Path):
    calls: list[str] = []

    @contextmanager
    def recorder(path: Path) -> Iterator[None]:
        calls.append("open")
        yield
        calls.append("written")
        path.write_bytes(b"blocks")

    profiler = StepProfiler((2, 3), tmp_path, 0, memory_snapshot=recorder)
    with profiler:
        with profiler.step(1):
            assert calls == []
        with profiler.step(2):
            assert calls == ["open"]
        with profiler.step(3):
            pass
        assert calls == ["open", "written"]
    assert names(tmp_path) == ["memory_rank_0000_steps_2_3.pickle", "trace_rank_0000_steps_2_3.json.gz"]
    assert (tmp_path / "memory_rank_0000_steps_2_3.pickle").read_bytes() == b"blocks"
