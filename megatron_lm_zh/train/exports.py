"""Hugging Face exports beside the kept checkpoints, each made by a process of its own while training goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from megatron_lm_zh.run_directory import RunDirectory, step_of
from megatron_lm_zh.runtime import children

LOOK_EVERY_S = 10.0
"""A listing of the checkpoints is no matter of course on a shared file system."""


class Exports:
    """Makes `hf/iter_N` of every complete checkpoint, the newest first, one at a time; rank 0 alone has one.

    The converter is resumable: what a stopped run left half done, the next attempt goes on with. Exports of
    checkpoints that are no longer kept are removed.
    """

    def __init__(self, run: RunDirectory, on_failure: Callable[[int, str], None]) -> None:
        """
        Args:
            run: its directory.
            on_failure: told the step and what the converter said; training goes on.
        """
        self._run = run
        self._on_failure = on_failure
        self._process: subprocess.Popen[str] | None = None
        self._checkpoint: Path | None = None
        self._failed: set[Path] = set()
        self._looked = -LOOK_EVERY_S

    def poll(self) -> None:
        """Looks after the export that is being made, and begins the next; call it at every step."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._collect()
        kept = self._run.complete_checkpoints()
        self._retire(kept)
        missing = [path for path in kept if path not in self._failed and not self._run.export(step_of(path)).is_dir()]
        if missing:
            self._begin(missing[0])

    def finish(self) -> None:
        """Waits until every kept checkpoint has its export, or has failed to get one."""
        self._look()
        while self._process is not None:
            self._process.wait()
            self._look()

    def stop(self) -> None:
        """Leaves what is not done to the next attempt."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _begin(self, checkpoint: Path) -> None:
        target = self._run.export(step_of(checkpoint))
        command = [sys.executable, "-m", "megatron_lm_zh", "convert", "to-hf", str(checkpoint), str(target)]
        self._checkpoint = checkpoint
        self._process = subprocess.Popen(
            [*command, "--workers", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(children.serve, os.getpid()),
        )

    def _collect(self) -> None:
        assert self._process is not None and self._checkpoint is not None
        said = self._process.communicate()[1].strip().splitlines()
        if self._process.returncode and self._checkpoint.is_dir():  # gone: newer ones have taken its place
            self._failed.add(self._checkpoint)
            self._on_failure(step_of(self._checkpoint), said[-1] if said else f"exit code {self._process.returncode}")
        self._process = None

    def _retire(self, kept: list[Path]) -> None:
        wanted = {self._run.export(step_of(path)) for path in kept}
        exports = self._run.exports
        for path in exports.glob("iter_*") if exports.is_dir() else ():
            if path.with_name(path.name.removesuffix(".partial")) not in wanted:
                shutil.rmtree(path, ignore_errors=True)
