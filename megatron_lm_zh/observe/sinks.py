"""Where metrics rows go: metrics.jsonl always, TensorBoard and W&B when asked for, all behind one protocol."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from megatron_lm_zh.config.schema import Log
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import atomic_file, write_bytes
from megatron_lm_zh.observe.json_lines import append_json, open_appending

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
EXPERTS_FILE = "experts.jsonl"
_NOT_A_FIGURE = ("kind", "step", "source")


class Sink(Protocol):
    """A place that rows are written to."""

    def write(self, row: dict[str, Any]) -> None:
        """Takes one row, as ``to_json()`` of a row gives it."""

    def flush(self) -> None:
        """Returns when all rows so far would survive a crash of the process."""

    def close(self) -> None:
        """Flushes and lets go; nothing is written afterwards."""


def open_sinks(run_dir: Path, log: Log, *, resume_step: int, run_name: str, config_dict: dict[str, Any]) -> list[Sink]:
    """The sinks that the config asks for, each brought back to the step that the run resumes from.

    Args:
        run_dir: run directory, which exists.
        log: the config's log section.
        resume_step: step of the checkpoint that was loaded: later rows are dropped. 0 is a fresh start: all are.
        run_name: the run's name at W&B.
        config_dict: the resolved config, shown at W&B.

    Raises:
        UserError: W&B is asked for and cannot be used.
    """
    last_kept = _last_kept(resume_step)
    sinks: list[Sink] = [_resumed(run_dir / METRICS_FILE, last_kept)]
    if log.tensorboard:
        if TensorBoardSink.available():
            sinks.append(TensorBoardSink(run_dir / "tensorboard", last_kept=last_kept))
        else:
            logger.info("no TensorBoard events are written: pip install megatron_lm_zh[track]")
    if log.wandb_project is not None:
        sinks.append(WandbSink(log.wandb_project, run_name, run_dir, config_dict))
    return sinks


def open_experts_sink(run_dir: Path, *, resume_step: int) -> Sink:
    """The file of the experts' load, brought back to the step that the run resumes from."""
    return _resumed(run_dir / EXPERTS_FILE, _last_kept(resume_step))


class JsonlSink:
    """Appends each row as one line of JSON; a line reaches the kernel at once and the disk at ``flush()``."""

    def __init__(self, path: Path) -> None:
        self._file = open_appending(path)

    def write(self, row: dict[str, Any]) -> None:
        append_json(self._file, row)

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()


def _resumed(path: Path, last_kept: int) -> JsonlSink:
    rewind(path, last_kept)
    return JsonlSink(path)


def _last_kept(resume_step: int) -> int:
    return resume_step or -1  # without a checkpoint step 0 is evaluated once more, so its rows go, too


def rewind(path: Path, step: int) -> int:
    """Drops torn lines and the rows after ``step`` from a metrics file and returns how many lines went.

    A file that does not exist, or has nothing to drop, is left alone; else it is replaced in one atomic rename.
    """
    if not path.exists():
        return 0
    with path.open("rb") as lines:
        dropped = sum(not _stands(line, step) for line in lines)
    if dropped:
        with path.open("rb") as lines, atomic_file(path) as kept:
            kept.writelines(line.rstrip(b"\n") + b"\n" for line in lines if _stands(line, step))
    return dropped


def _stands(line: bytes, step: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:  # half a line, or the zeros that some filesystems leave after a power cut
        return False
    return isinstance(row, dict) and row.get("step", 0) <= step


class TensorBoardSink:
    """Writes TensorBoard events with tensorboard's own writer, which needs neither torch nor tensorflow.

    On resume TensorBoard is told to forget the events after step ``last_kept`` by a session-start event.
    """

    def __init__(self, directory: Path, *, last_kept: int) -> None:
        event_pb2 = importlib.import_module("tensorboard.compat.proto.event_pb2")
        summary_pb2 = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._writer = writer.EventFileWriter(str(directory))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(step=last_kept + 1, wall_time=time.time(), session_log=start))

    @staticmethod
    def available() -> bool:
        """Whether the tensorboard package is installed (it comes with the `track` extra)."""
        return importlib.util.find_spec("tensorboard") is not None

    def write(self, row: dict[str, Any]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
        event = self._event(step=row["step"], wall_time=time.time(), summary=self._summary(value=values))
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Reports to Weights & Biases; the run's id is kept in the run directory, so that a resumed run goes on in place.

    W&B reads its own settings from the environment: WANDB_MODE=offline writes to the run directory alone.
    """

    def __init__(self, project: str, name: str, directory: Path, config: dict[str, Any]) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                f"W&B cannot be imported ({error})",
                where="log.wandb_project",
                mend="pip install megatron_lm_zh[track], or set log.wandb_project=null",
            ) from error
        # The curves are drawn over our step: W&B's own counter refuses the steps that a resumed run does again.
        try:
            self._run = wandb.init(
                project=project, name=name, dir=str(directory), config=config, id=_run_id(directory), resume="allow"
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B does not start: {error}",
                where="log.wandb_project",
                mend="run `wandb login`, or set WANDB_MODE=offline, or log.wandb_project=null",
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, row: dict[str, Any]) -> None:
        self._run.log({"step": row["step"], **scalars(row)})

    def flush(self) -> None:
        """W&B writes from a process of its own and has nothing to wait for here."""

    def close(self) -> None:
        self._run.finish()


def _run_id(run_dir: Path) -> str:
    path = run_dir / "wandb" / "run_id"
    if path.exists():
        return path.read_text().strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    run_id = uuid.uuid4().hex
    write_bytes(path, run_id.encode())
    return run_id


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The figures of a row by curve name (``train/lm_loss``, ``valid/zh/ppl``); what is None is left out."""
    prefix = "/".join(row[part] for part in ("kind", "source") if part in row)
    return {f"{prefix}/{name}": value for name, value in row.items() if name not in _NOT_A_FIGURE and value is not None}
