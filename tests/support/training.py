"""Whole runs inside the rank pool: what `mlzh pretrain` does, with its output, and meddling that tests need."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from support.pool import RankPool


@dataclass(frozen=True)
class Outcome:
    """What one rank of a run said and how it ended."""

    exit_code: int
    complete: bool
    error: str
    out: str
    err: str


@dataclass(frozen=True)
class Meddling:
    """What goes wrong on purpose; steps are numbers of optimizer steps."""

    stop_after: int | None = None
    """Rank `on_rank` gets `signal_name` during this step."""
    signal_name: str = "SIGUSR1"
    poison_at: int | None = None
    """The labels' mask of rank `on_rank` becomes NaN at this step."""
    free_bytes: int | None = None
    """What the file system says it has left."""
    unwritable: str | None = None
    """Writing a file whose name begins so fails: no space left."""
    undeletable: bool = False
    """Old checkpoints cannot be removed."""
    on_rank: int = 0


def pretrain(pool: RankPool, config: Path, *overrides: str, world: int = 1, **options: Any) -> Outcome:
    """Trains in the pool; returns rank 0's outcome after a check that all ranks ended alike."""
    wanted = {name: options.pop(name) for name in ("allowed", "init_from") if name in options}
    outcomes = pool.run(world, pretrain_rank, str(config), list(overrides), wanted, Meddling(**options))
    assert len({(outcome.exit_code, outcome.complete) for outcome in outcomes}) == 1, outcomes
    return outcomes[0]


def pretrain_rank(
    ranks: Any, device: Any, config: str, overrides: list[str], options: dict[str, Any], meddling: Meddling
) -> Outcome:
    """Runs on every rank of the pool."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.errors import UserError
    from megatron_lm_zh.train.pretrain import pretrain

    out, err = io.StringIO(), io.StringIO()
    code, complete, message = 0, False, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _meddled(meddling, ranks.rank):
        try:
            loaded = load_config(config, overrides, world=ranks.world)
            complete = pretrain(loaded, ranks, device, **options)
        except UserError as error:
            code, message = error.exit_code, str(error)
    return Outcome(code, complete, message, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _meddled(meddling: Meddling, rank: int) -> Iterator[None]:
    import shutil

    from megatron_lm_zh.checkpoint import save
    from megatron_lm_zh.train import step

    with contextlib.ExitStack() as stack:
        if rank == meddling.on_rank and (meddling.stop_after or meddling.poison_at):
            original = step.Stepper.step

            def one_step(self: Any, batches: Any, number: int, samples: int) -> Any:
                if number == meddling.stop_after:
                    os.kill(os.getpid(), signal.Signals[meddling.signal_name])
                if number == meddling.poison_at:
                    batches = _poisoned(batches)
                return original(self, batches, number, samples)

            stack.enter_context(mock.patch.object(step.Stepper, "step", one_step))
        if meddling.free_bytes is not None:
            usage = mock.Mock(free=meddling.free_bytes)
            stack.enter_context(mock.patch.object(shutil, "disk_usage", lambda path: usage))
        if meddling.unwritable is not None:
            stack.enter_context(_no_space_for(meddling.unwritable))
        if meddling.undeletable:
            stack.enter_context(mock.patch.object(save, "remove_checkpoint", _refuse))
        yield


def _poisoned(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        yield batch | {"loss_mask": batch["loss_mask"] * float("nan")}


def _refuse(directory: Path) -> None:
    raise OSError(39, "Directory not empty", str(directory))


@contextlib.contextmanager
def _no_space_for(prefix: str) -> Iterator[None]:
    """Opening a file to write raises ENOSPC where its name begins with `prefix`."""
    original = Path.open

    def refusing(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if self.name.lstrip(".").startswith(prefix) and set(mode) & set("wax"):
            raise OSError(28, "No space left on device", str(self))
        return original(self, mode, *args, **options)

    with mock.patch.object(Path, "open", refusing):
        yield


def rows(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The rows of one kind in a run's metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def curve(run: Path) -> dict[int, tuple[float, float, float]]:
    """Loss, gradient norm and learning rate of every step."""
    return {row["step"]: (row["lm_loss"], row["grad_norm"], row["lr"]) for row in rows(run)}


def incidents(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's incidents file."""
    path = run / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def checkpoints(run: Path) -> list[str]:
    """Names of everything in a run's checkpoint directory."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())
