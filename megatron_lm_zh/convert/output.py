"""A result directory that is whole or not there: written under a temporary name with a journal, flushed, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_lm_zh.convert.plan import Plan, identity_of
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import check_new_directory, sync_directory, write_error
from megatron_lm_zh.runtime.locks import exclusive

JOURNAL = ".journal"
_LOCK = ".lock"
_SPARE_BYTES = 4 << 20
"""What a result takes beside its tensors: tokenizer, metadata, headers."""


@dataclass
class Partial:
    """The directory that becomes the result, and the files of it that are done."""

    path: Path
    done: set[str]
    """Names of files that are whole and on the disk, from this attempt and from those before it."""

    def record(self, name: str) -> None:
        """Notes that a file is whole."""
        _append(self.path / JOURNAL, {"file": name})
        self.done.add(name)


@contextmanager
def resumable_directory(output: Path, num_bytes: int, fingerprint: str) -> Iterator[Partial]:
    """Yields a directory beside `output` that becomes `output` when the block ends without an error.

    Files that an earlier attempt of the same fingerprint had done, before it was killed or failed, are still there.

    Args:
        output: where the result shall be; must not exist, or be an empty directory.
        num_bytes: what the tensors will take, checked against the free space first.
        fingerprint: says what the result is made of; where it is another one, nothing of an earlier attempt is kept.

    Raises:
        UserError: the output is taken, cannot be written, or the disk is full. There is no `output` then; what was
            done stays for the next attempt, if it is at least one whole file.
    """
    check_new_directory(output)
    path = output.with_name(f"{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _taken(path, output):
            partial = Partial(path, _done_before(path, fingerprint))
            try:
                _clear(path, keep={_LOCK, JOURNAL, *partial.done} if partial.done else {_LOCK})
                _check_space(output.parent, num_bytes - sum((path / name).stat().st_size for name in partial.done))
                if not partial.done:
                    _append(path / JOURNAL, {"fingerprint": fingerprint})
                yield partial
                _give_name(path, output)
            except Exception as error:
                if not partial.done:
                    shutil.rmtree(path, ignore_errors=True)
                    raise
                raise _with_hint(error, output, len(partial.done)) from error
    except OSError as error:
        raise write_error(output, error) from error


@contextmanager
def converted(output: Path, plan: Plan, what: str, *sources: Path) -> Iterator[Partial]:
    """Yields the directory that becomes what a plan makes of some directories; errors as in `resumable_directory`.

    Args:
        output: where the result shall be.
        plan: its tensors.
        what: the kind of conversion, which an earlier attempt must share.
        sources: what is converted. UserError, and no result, where a file of theirs has changed at the end.
    """
    before = identity_of(*sources)
    with resumable_directory(output, plan.num_bytes, plan.fingerprint(what, before)) as result:
        yield result
        if identity_of(*sources) != before:
            raise UserError("the files changed while they were converted", where=str(sources[0]))


@contextmanager
def _taken(path: Path, output: Path) -> Iterator[None]:
    """Holds the directory for this process."""
    try:
        lock = exclusive(path)
        lock.__enter__()
    except UserError as error:
        raise UserError("another process is writing it", where=str(output), mend="wait for it to end") from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _done_before(path: Path, fingerprint: str) -> set[str]:
    """The files that an earlier attempt with this fingerprint had done."""
    try:
        lines = (path / JOURNAL).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break  # the attempt was killed while it wrote this line
    if not entries or entries[0] != {"fingerprint": fingerprint}:
        return set()
    return {entry["file"] for entry in entries[1:] if (path / entry["file"]).is_file()}


def _clear(path: Path, keep: Set[str]) -> None:
    """Removes all that is in the directory but `keep`: what an attempt wrote last, and its temporary files."""
    for found in path.iterdir():
        if found.name in keep:
            continue
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()


def _append(journal: Path, entry: dict[str, str]) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _check_space(directory: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < num_bytes + _SPARE_BYTES:
        what = f"{num_bytes / 1e9:.2f} GB do not fit, {free / 1e9:.2f} GB are free"
        raise UserError(what, where=str(directory))


def _give_name(path: Path, output: Path) -> None:
    for found in [*path.rglob("*"), path]:
        sync_directory(found)  # a file as well as a directory: fsync of a descriptor opened for reading
    (path / JOURNAL).unlink()
    (path / _LOCK).unlink()
    path.rename(output)  # takes the place of an empty directory, too
    sync_directory(output.parent)


def _with_hint(error: Exception, output: Path, files: int) -> Exception:
    """The error, and that the work so far is not lost."""
    mend = f"{files} files are done and kept: mend it, and the same command goes on"
    if isinstance(error, OSError):
        return UserError(f"cannot write: {error.strerror or error}", where=str(output), mend=mend)
    if isinstance(error, UserError):
        mend = f"{error.mend}; {mend}" if error.mend else mend
        return UserError(error.what, where=error.where, expected=error.expected, mend=mend)
    return error
