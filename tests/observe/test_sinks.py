"""Sinks: what they write, what a resume takes back, and what W&B is told."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from megatron_lm_zh.config.schema import Log
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.observe import sinks
from megatron_lm_zh.observe.sinks import JsonlSink, TensorBoardSink, WandbSink, open_sinks, rewind, scalars

PLAIN = Log(tensorboard=False)


def row(step: int, **more: object) -> dict:
    return {"kind": "train", "step": step, "lm_loss": 1.0 / step if step else 9.0, **more}


def write_rows(path: Path, steps: list[int]) -> None:
    sink = JsonlSink(path)
    for step in steps:
        sink.write(row(step))
    sink.close()


def read_steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_is_readable_before_the_file_is_closed(tmp_path: Path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(row(3, source="中文"))
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"kind": "train", "step": 3, "lm_loss": 0.3333333333333333, "source": "中文"}\n'
    )
    sink.flush()
    sink.close()
    sink.close()


def test_what_is_not_finite_is_null_and_not_a_word_json_lacks(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(row(1, grad_norm=float("nan"), ppl=float("inf")))
    sink.close()
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["grad_norm"] is None
    assert written["ppl"] is None


def test_a_torn_line_is_not_glued_to_the_next(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "st')
    write_rows(path, [1])
    assert path.read_text().splitlines()[1] == '{"kind": "train", "step": 1, "lm_loss": 1.0}'


def test_rewind_drops_later_rows_and_torn_lines_and_keeps_the_rest_to_the_byte(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [10, 20])
    kept = path.read_bytes()
    write_rows(path, [30, 40])
    with path.open("ab") as file:
        file.write(b"\0\0\0\n")
        file.write(b'{"kind": "train", "step": 15')
    assert rewind(path, 20) == 4
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_rewind_keeps_a_whole_last_line_that_lacks_its_newline(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n{"step": 1}')
    assert rewind(path, 5) == 1
    assert path.read_text() == '{"step": 1}\n'


def test_rewind_leaves_a_file_with_nothing_to_drop_and_a_missing_one(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert rewind(path, 5) == 0
    assert not path.exists()
    write_rows(path, [1, 2])
    inode = path.stat().st_ino
    assert rewind(path, 2) == 0
    assert path.stat().st_ino == inode


def test_rewind_that_fails_leaves_the_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [1, 2])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megatron_lm_zh.files.os.fsync", full)
    with pytest.raises(UserError, match="No space"):
        rewind(path, 1)
    assert read_steps(path) == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_step_stands_once_over_attempts(tmp_path: Path):
    for resume_step, steps in [(0, [0, 1, 2, 3]), (2, [3, 4]), (0, [0, 1])]:
        (sink,) = open_sinks(tmp_path, PLAIN, resume_step=resume_step, run_name="r", config_dict={})
        for step in steps:
            sink.write(row(step))
        sink.close()
        if resume_step:
            assert read_steps(tmp_path / "metrics.jsonl") == [0, 1, 2, 3, 4]
    assert read_steps(tmp_path / "metrics.jsonl") == [0, 1]


def test_scalars_are_named_by_kind_and_source():
    assert scalars(row(1)) == {"train/lm_loss": 1.0}
    valid = {"kind": "valid", "step": 5, "source": "zh", "ppl": 2.0, "bits_per_char": None}
    assert scalars(valid) == {"valid/zh/ppl": 2.0}


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_step, steps in [(0, [1, 2, 3]), (2, [3, 4])]:
        opened = open_sinks(tmp_path, Log(), resume_step=resume_step, run_name="r", config_dict={})
        for step in steps:
            for sink in opened:
                sink.write({"kind": "train", "step": step, "lm_loss": float(10 * resume_step + step)})
        for sink in opened:
            sink.flush()
            sink.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/lm_loss")] == [
        (1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0),
    ]  # fmt: skip


def test_without_tensorboard_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TensorBoardSink, "available", staticmethod(lambda: False))
    opened = open_sinks(tmp_path, Log(), resume_step=0, run_name="r", config_dict={})
    assert [type(sink) for sink in opened] == [JsonlSink]
    opened[0].close()


class FakeRun:
    """Keeps what a W&B run is told."""

    def __init__(self) -> None:
        self.logged: list[dict] = []
        self.metrics: list[tuple] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


def fake_wandb(monkeypatch: pytest.MonkeyPatch, error: str | None = None) -> types.SimpleNamespace:
    class Error(Exception):
        pass

    seen = types.SimpleNamespace(inits=[], run=FakeRun())

    def init(**arguments: object) -> FakeRun:
        if error:
            raise Error(error)
        seen.inits.append(arguments)
        return seen.run

    module = types.ModuleType("wandb")
    module.init, module.Error = init, Error  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_wandb_gets_our_step_as_its_axis_and_the_same_run_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = fake_wandb(monkeypatch)
    log = Log(tensorboard=False, wandb_project="zh")
    for resume_step in (0, 10):
        _, sink = open_sinks(tmp_path, log, resume_step=resume_step, run_name="name", config_dict={"a": 1})
        sink.write(row(resume_step + 1))
        sink.flush()
        sink.close()
    first, second = seen.inits
    assert first == second
    assert first["project"] == "zh"
    assert first["name"] == "name"
    assert first["dir"] == str(tmp_path)
    assert first["config"] == {"a": 1}
    assert first["resume"] == "allow"
    assert first["id"] == (tmp_path / "wandb" / "run_id").read_text()
    assert ("*", "step") in seen.run.metrics
    assert seen.run.logged[0] == {"step": 1, "train/lm_loss": 1.0}
    assert seen.run.finished


def test_wandb_missing_or_refusing_is_one_line_with_a_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log\.wandb_project: .*pip install megatron_lm_zh\[track\]"):
        WandbSink("p", "n", tmp_path, {})
    fake_wandb(monkeypatch, error="api_key not configured")
    with pytest.raises(UserError, match=r"api_key not configured; .*wandb login"):
        WandbSink("p", "n", tmp_path, {})


def test_optional_packages_are_not_imported_unless_asked():
    script = (
        "import sys; import megatron_lm_zh.observe.reporter, megatron_lm_zh.observe.sinks, megatron_lm_zh.observe.logs;"
        "import megatron_lm_zh.observe.meters, megatron_lm_zh.observe.incidents, megatron_lm_zh.observe.environment;"
        "sys.exit(bool({'torch', 'wandb', 'tensorboard', 'megatron.core'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert sinks.METRICS_FILE == "metrics.jsonl"
