"""Reading checkpoints: the newest sound one, restored at any layout."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.optimizer import MegatronOptimizer

from megatron_lm_zh.checkpoint.manifest import Layout, Manifest, problem_with, read_manifest
from megatron_lm_zh.checkpoint.state import FULLY_RESHARDABLE, model_state, restore, restore_model, training_state
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.run_directory import RunDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint whose files are what they were when it was written."""

    directory: Path
    manifest: Manifest
    rejected: dict[Path, str]
    """The newer checkpoints that could not be used, each with one line that says why."""

    def set_rejected_aside(self) -> None:
        """Renames the damaged checkpoints, which would otherwise count as the newest for retention and readers."""
        for directory in self.rejected:
            aside = directory.with_name(f"{directory.name}.damaged")
            if aside.exists():
                shutil.rmtree(aside)
            directory.rename(aside)


def find_sound_checkpoint(run: RunDirectory) -> Found | None:
    """The newest complete checkpoint whose every file has its size and checksum; None in a fresh run directory.

    The ranks share the reading; each returns the same.

    Raises:
        UserError: there are complete checkpoints, and none of them is sound.
    """
    names: list[list[Path]] = [run.complete_checkpoints()]
    dist.broadcast_object_list(names)  # one rank's view of a shared file system is everybody's
    rejected: dict[Path, str] = {}
    for directory in names[0]:
        problems = _problems(directory)
        if not problems:
            return Found(directory, read_manifest(directory), rejected)
        rejected[directory] = f"{directory.name} is damaged: {problems[0]}"
    if rejected:
        raise UserError(
            f"no checkpoint can be read ({'; '.join(rejected.values())})",
            where=str(run.checkpoints),
            mend="restore one from a backup, or move the checkpoints away to start from the first step",
        )
    return None


def load_training_state(
    found: Found, model: list[torch.nn.Module], optimizer: MegatronOptimizer, layout: Layout
) -> None:
    """Restores weights and optimizer, and the random generators where the layout is the one that saved them.

    Raises:
        UserError: the optimizer's state was saved rank by rank, and the layout is another one.
    """
    same_layout, sharding = found.manifest.layout == layout, found.manifest.distrib_optim_sharding_type
    if sharding != FULLY_RESHARDABLE and not same_layout:
        raise UserError(
            f"saved as {sharding}, which only the layout that saved it can read; {_difference(found, layout)}",
            where=str(found.directory),
            mend=f"resume in that layout with checkpoint.distrib_optim_sharding_type={FULLY_RESHARDABLE}, save, and "
            "change the layout then",
        )
    wanted = training_state(model, optimizer, is_loading=True, with_rng=same_layout, sharding=sharding)
    restore(model, optimizer, dist_checkpointing.load(wanted, str(found.directory)))


def load_weights(directory: Path, model: list[torch.nn.Module]) -> None:
    """Restores the weights alone, for evaluation and continued pretraining."""
    loaded = dist_checkpointing.load({"model": model_state(model)}, str(directory))
    restore_model(model, loaded["model"])


def _difference(found: Found, layout: Layout) -> str:
    before, now = asdict(found.manifest.layout), asdict(layout)
    changed = [f"{axis} was {before[axis]} and is {now[axis]}" for axis in now if before[axis] != now[axis]]
    return ", ".join(changed)


def _problems(directory: Path) -> list[str]:
    """What is wrong with a checkpoint's files; each rank reads its share of them and all hear of every problem."""
    mine: list[str] = []
    try:
        files = sorted(read_manifest(directory).files.items())
    except UserError as error:
        files, mine = [], [str(error)]
    for name, expected in files[dist.get_rank() :: dist.get_world_size()]:
        problem = problem_with(directory, name, expected)
        if problem is not None:
            mine.append(problem)
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    return [problem for problems in everyone for problem in problems]
