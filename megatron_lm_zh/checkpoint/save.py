"""Writing checkpoints: asynchronously, checked for space, checksummed, complete only with their manifest."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from torch.distributed.checkpoint.api import CheckpointException

from megatron_lm_zh import compat
from megatron_lm_zh.checkpoint import writer
from megatron_lm_zh.checkpoint.manifest import FORMAT_VERSION, FileRecord, Layout, Manifest, record
from megatron_lm_zh.checkpoint.state import FULLY_RESHARDABLE, State
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import sync_directory, write_bytes
from megatron_lm_zh.run_directory import CONFIG, MANIFEST, RunDirectory

log = logging.getLogger(__name__)

GIB = 2**30


class Saver:
    """Saves checkpoints into one run directory and keeps the newest few.

    Every method is called by all ranks at the same step.
    """

    def __init__(
        self,
        run: RunDirectory,
        layout: Layout,
        *,
        keep_last: int,
        asynchronous: bool,
        sharding: str = FULLY_RESHARDABLE,
    ) -> None:
        self.run = run
        self.layout = layout
        self.sharding = sharding
        self.keep_last = keep_last
        self.asynchronous = asynchronous
        self._queue = writer.WriterQueue(persistent=False)
        self._writing: Path | None = None

    def save(self, state: State, *, step: int, consumed_samples: int, config_yaml: str, skipped_steps: int = 0) -> None:
        """Starts to write a checkpoint (and ends it, where saving is not asynchronous).

        Raises:
            UserError: not enough space, or the files could not be written; the earlier checkpoints are untouched.
        """
        self.finish()
        directory = self.run.checkpoint(step)
        self._prepare(directory, _bytes_of(state), config_yaml)
        self._writing = directory
        writer.start_results_queue()
        arguments = {"async_strategy": "mcore"} if compat.megatron_core_version() >= (0, 19) else {}
        with _saving(directory):
            request = dist_checkpointing.save(state, str(directory), async_sharded_save=True, **arguments)
            if request.async_fn is not None:
                request = request._replace(async_fn=writer.with_checksums(request.async_fn, directory, dist.get_rank()))
            request.add_finalize_fn(lambda: self._complete(directory, step, consumed_samples, skipped_steps))
            self._queue.schedule_async_request(request)
        if not self.asynchronous:
            self.finish()

    def poll(self) -> None:
        """Completes a checkpoint whose writing has ended; call it at every step."""
        self._finalize(blocking=False)

    def finish(self) -> None:
        """Waits until the checkpoint being written is complete."""
        self._finalize(blocking=True)

    def _finalize(self, *, blocking: bool) -> None:
        if self._writing is None:
            return
        with _saving(self._writing):
            if self._queue.maybe_finalize_async_calls(blocking=blocking):
                self._writing = None

    def _prepare(self, directory: Path, needed: int, config_yaml: str) -> None:
        """Rank 0 checks the space and makes an empty directory; every rank learns whether that went well."""
        problem: list[Any] = [None]
        if dist.get_rank() == 0:
            problem[0] = self._make_directory(directory, needed, config_yaml)
        dist.broadcast_object_list(problem)
        if problem[0] is not None:
            raise UserError(problem[0], where=str(directory), mend="earlier checkpoints are untouched")

    def _make_directory(self, directory: Path, needed: int, config_yaml: str) -> str | None:
        try:
            self.run.checkpoints.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.run.checkpoints).free
            if free < needed:
                return f"the checkpoint needs {needed / GIB:.2f} GiB and the disk has {free / GIB:.2f} GiB left"
            shutil.rmtree(directory, ignore_errors=True)  # what a killed attempt left behind
            directory.mkdir()
            write_bytes(directory / CONFIG, config_yaml.encode())
        except OSError as error:
            return f"cannot make the checkpoint's directory: {error.strerror}"
        except UserError as error:
            return error.what
        return None

    def _complete(self, directory: Path, step: int, consumed_samples: int, skipped_steps: int) -> None:
        """Manifest, tracker, retention, in this order: a reader sees whole checkpoints only."""
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                files = _collect_records(directory)
                manifest = Manifest(
                    FORMAT_VERSION, step, consumed_samples, self.layout, files, self.sharding, skipped_steps
                )
                manifest.write(directory)
                write_bytes(self.run.tracker, f"{step}\n".encode())
            except (OSError, UserError) as error:
                problem = [error.what if isinstance(error, UserError) else str(error)]
        dist.broadcast_object_list(problem)
        if problem[0] is not None:
            raise UserError(problem[0])
        if dist.get_rank() == 0:
            self._retire()

    def _retire(self) -> None:
        """Removes the checkpoints that are too many; one that cannot be removed is no reason to end the run."""
        for old in self.run.complete_checkpoints()[self.keep_last :]:
            try:
                remove_checkpoint(old)
            except OSError as error:
                log.warning("cannot remove the old checkpoint %s: %s", old, error.strerror)


def remove_checkpoint(directory: Path) -> None:
    """Deletes a checkpoint, its manifest first, so that it is never taken for a complete one half-way."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory)


class _saving:  # noqa: N801  (used as a statement: `with _saving(directory)`)
    """Turns what the writers raise into one line, and removes what they left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (CheckpointingException, CheckpointException, OSError, UserError)):
            return
        # torch's writer seldom names a full disk: what is left tells more than its words.
        free = shutil.disk_usage(self.directory.parent).free
        if dist.get_rank() == 0:
            with contextlib.suppress(OSError):  # the error above is the one to tell
                remove_checkpoint(self.directory)
        raise UserError(
            f"the checkpoint could not be written, with {free / GIB:.2f} GiB left on the disk: {_innermost(error)}",
            where=str(self.directory),
            mend="earlier checkpoints are untouched",
        ) from error


def _innermost(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    if "results_queue" in str(error):  # megatron-core's words for a writer that has not reported
        return "a writer process died, perhaps killed for its memory"
    return str(error).strip().splitlines()[-1]


def _bytes_of(state: State) -> int:
    """Bytes of the whole checkpoint: the shards that all ranks will write."""
    mine = 0
    for value in nested_values(state):
        for item in nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]:
            if isinstance(item, ShardedTensor) and is_main_replica(item.replica_id) and item.data is not None:
                mine += item.data.numel() * item.data.element_size()
    everyone = [0] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return sum(everyone)


def _collect_records(directory: Path) -> dict[str, FileRecord]:
    """The ranks' checksums in one table, with those of the few files that rank 0 itself wrote."""
    records: dict[str, FileRecord] = {}
    for path in sorted(directory.glob(".checksums_*.json")):
        records |= {name: FileRecord(**value) for name, value in json.loads(path.read_text()).items()}
        path.unlink()
    for path in sorted(directory.iterdir()):
        if path.name not in records:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # the writers' files are on the disk already
            records[path.name] = record(path)
    sync_directory(directory)
    return records
