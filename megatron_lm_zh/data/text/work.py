"""The work directory of a job, `<output-prefix>.partial`: what is done, who works there, what another job left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_lm_zh.data.text.plan import shard_bytes
from megatron_lm_zh.data.text.shuffle import SHUFFLE
from megatron_lm_zh.data.text.sources import Source
from megatron_lm_zh.data.text.tokenizing import work_file
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import temporary_name, write_bytes, write_error
from megatron_lm_zh.runtime.locks import hold

RECORD = "job.json"
SOURCES_LISTED = 1000
HALF = ".tmp-"


@dataclass(frozen=True)
class WorkDirectory:
    """An open work directory."""

    path: Path
    shard_bytes: int
    keys: int
    alone: bool
    """No other process works here."""

    def file(self, name: str, suffix: str) -> Path:
        """A file of a task, see `work_file`."""
        return work_file(self.path, name, suffix)

    def said(self, name: str) -> dict[str, Any] | None:
        """What a finished task said; None where it is not finished."""
        try:
            content: dict[str, Any] = orjson.loads(self.file(name, ".json").read_bytes())
        except (OSError, ValueError):
            return None
        return content

    def shard(self, name: str, itemsize: int) -> dict[str, Any] | None:
        """What a finished shard holds; None where it is not finished, or its files are not what it says."""
        said = self.said(name)
        if said is None or (self.path / SHUFFLE).is_file():  # shuffling takes the shards' files away one by one
            return said
        documents = sum(part["documents"] for part in said["parts"])
        for key in range(self.keys):
            tokens = sum(part["texts"][key][0] for part in said["parts"])
            sizes = {".bin": tokens * itemsize, ".len": documents * 4}
            for suffix, size in sizes.items():
                try:
                    if self.file(name, f"-{key}{suffix}").stat().st_size != size:
                        return None
                except FileNotFoundError:
                    return None
        return said

    def clean(self, shards: set[str], shuffling: bool) -> int:
        """Removes halves of files, and those of a shuffle that is not wanted any more.

        Finished shards of other inputs stay until the job is done: a name may have been mistyped.

        Args:
            shards: names of the job's shards.
            shuffling: whether files of a shuffle belong to the job.

        Returns:
            Number of finished shards of other inputs.
        """
        others = 0
        self.clean_halves()
        for entry in list(os.scandir(self.path)):
            if not shuffling and entry.name.startswith(("scatter_", "bucket_")):
                Path(entry.path).unlink(missing_ok=True)
            others += _is_result(entry.name) and entry.name.removesuffix(".json") not in shards
        return others

    def clean_halves(self) -> None:
        """Removes files that a killed worker was writing."""
        for entry in list(os.scandir(self.path)) if self.alone else ():
            if HALF in entry.name or entry.name.startswith(".assembled"):
                Path(entry.path).unlink(missing_ok=True)

    def has_finished(self) -> bool:
        """Whether any shard is done, of whatever input."""
        return self.path.is_dir() and any(_is_result(entry.name) for entry in os.scandir(self.path))


@contextlib.contextmanager
def work_directory(
    prefix: str, settings: dict[str, Any], sources: Sequence[Source], *, shared: bool
) -> Iterator[WorkDirectory]:
    """Opens or makes the work directory of an output prefix, and holds it for this process.

    Args:
        prefix: the output prefix.
        settings: what decides the ids; an unfinished job with other settings is refused.
        sources: what is read; they decide the size of a shard in a new directory, an old one keeps its own.
        shared: tasks of one job array work here at the same time.

    Raises:
        UserError: another process works here, another job's work lies here, or the directory cannot be made.
    """
    path = Path(f"{prefix}.partial")
    existed = path.parent.is_dir()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a+")
    except OSError as error:
        mend = "choose another --output-prefix"
        raise UserError(f"cannot make the directory: {error.strerror}", where=str(path), mend=mend) from error
    try:
        with lock:
            _hold(lock, path, shared=shared)
            listed = [{"url": one.url, "size": one.size, "stamp": one.stamp} for one in sources[:SOURCES_LISTED]]
            size = shard_bytes(sum(source.size for source in sources))
            proposed = {"settings": settings, "shard_bytes": size, "sources": listed}
            record = _record(path, proposed, shared=shared)
            yield WorkDirectory(path, int(record["shard_bytes"]), len(settings["--json-keys"]), not shared)
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):  # unfinished work is kept in it
                path.parent.rmdir()
        raise


def _hold(lock: Any, path: Path, *, shared: bool) -> None:
    try:
        holder = hold(lock, shared=shared)
    except OSError as error:
        raise UserError(
            f"the file system gives no locks ({error.strerror})", where=str(path), mend="choose another --output-prefix"
        ) from error
    if holder is not None:
        raise UserError(
            f"{holder} writes to this --output-prefix",
            where=str(path),
            mend="wait for it to end, or choose another --output-prefix",
        )


def _record(path: Path, proposed: dict[str, Any], *, shared: bool) -> dict[str, Any]:
    """The job record of the directory; the proposed one where there is none, or where nothing was finished under it."""
    file = path / RECORD
    try:
        if not shared and not any(_is_result(entry.name) for entry in os.scandir(path)):
            write_bytes(file, orjson.dumps(proposed, option=orjson.OPT_INDENT_2))
        elif shared and not file.exists():  # of many tasks that begin at once, one makes the record
            temporary = temporary_name(file)
            write_bytes(temporary, orjson.dumps(proposed, option=orjson.OPT_INDENT_2))
            with contextlib.suppress(FileExistsError):
                file.hardlink_to(temporary)
            temporary.unlink()
        record: dict[str, Any] = orjson.loads(file.read_bytes())
    except OSError as error:
        raise write_error(path, error) from error
    except ValueError as error:
        raise UserError("not a job record", where=str(file), mend=f"delete {path}") from error
    differing = [name for name, value in proposed["settings"].items() if record["settings"].get(name) != value]
    if differing:
        raise UserError(
            f"unfinished work of another job lies here (other {', '.join(differing)})",
            where=str(path),
            mend="finish it with its own command, choose another --output-prefix, or delete this directory",
        )
    return record


def _is_result(name: str) -> bool:
    """Whether a file says that a shard is done."""
    return (
        name.endswith(".json")
        and not name.startswith(("checksum_", "scatter_", "bucket_", "."))
        and name not in (RECORD, SHUFFLE)
    )


def discard(work: WorkDirectory) -> None:
    """Removes the directory; whoever waits for a lock in it finds it gone."""
    shutil.rmtree(work.path, ignore_errors=True)


@contextlib.contextmanager
def assembling(work: WorkDirectory) -> Iterator[bool]:
    """Only one process of many is in this block at a time; False: another one has assembled the datasets before."""
    if work.alone:
        yield True
        return
    with (work.path / ".assembling").open("a+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield (work.path / RECORD).is_file()
