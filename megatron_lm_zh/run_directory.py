"""The names of everything in a run directory, and which of its checkpoints are complete."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_lm_zh.errors import UserError

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
_ITERATION = re.compile(r"iter_(\d{7,})$")


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one run directory."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config of the latest attempt."""
        return self.path / CONFIG

    @property
    def environment(self) -> Path:
        """Versions, git commit, data and tokenizer fingerprints of the latest attempt."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Training and validation rows, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def incidents(self) -> Path:
        """What went wrong, when, on which rank."""
        return self.path / "incidents.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        """One log file a rank, profiler traces, NCCL flight records."""
        return self.path / "logs"

    @property
    def tokenizer(self) -> Path:
        """A copy of the tokenizer as Hugging Face files."""
        return self.path / "tokenizer"

    @property
    def done(self) -> Path:
        """There when the last step is trained and saved."""
        return self.path / "DONE"

    @property
    def checkpoints(self) -> Path:
        """One directory a checkpoint, and the tracker."""
        return self.path / "checkpoints"

    @property
    def exports(self) -> Path:
        """One Hugging Face directory a kept checkpoint, where `checkpoint.also_save_hf` asks for them."""
        return self.path / "hf"

    def export(self, step: int) -> Path:
        """Hugging Face directory of the checkpoint taken after `step` steps."""
        return self.exports / f"iter_{step:07d}"

    @property
    def tracker(self) -> Path:
        """Number of the newest complete checkpoint, as Megatron-LM writes it."""
        return self.checkpoints / "latest_checkpointed_iteration.txt"

    def checkpoint(self, step: int) -> Path:
        """Directory of the checkpoint taken after `step` steps."""
        return self.checkpoints / f"iter_{step:07d}"

    def complete_checkpoints(self) -> list[Path]:
        """Checkpoints whose manifest is there, newest first."""
        found = self.checkpoints.glob("iter_*") if self.checkpoints.is_dir() else iter(())
        complete = [path for path in found if _ITERATION.search(path.name) and (path / MANIFEST).is_file()]
        return sorted(complete, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Steps done when the checkpoint directory was written, from its name."""
    match = _ITERATION.search(checkpoint.name)
    assert match is not None, checkpoint
    return int(match.group(1))


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint directory that `path` means: itself, or the newest complete one of a run directory.

    Raises:
        UserError: there is no complete checkpoint.
    """
    if (path / MANIFEST).is_file():
        return path
    complete = RunDirectory(path).complete_checkpoints()
    if complete:
        return complete[0]
    if not path.exists():
        raise UserError("no such directory", where=str(path), expected="a checkpoint or a run directory")
    raise UserError(
        "no complete checkpoint here",
        where=str(path),
        expected="a run directory with checkpoints/iter_*/manifest.json, or one such iter_* directory",
    )
