"""Files and directories that are written whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from megatron_lm_zh.errors import UserError


def temporary_name(path: Path) -> Path:
    """Where a file is written before it takes its name; another process, on any node, does not use the same."""
    return path.with_name(f".{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def sync_directory(path: Path) -> None:
    """Makes renames inside the directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> UserError:
    """The one line for a file that could not be written, e.g. because the disk is full."""
    mend = "free some space or choose another place; nothing was left behind" if error.errno == errno.ENOSPC else ""
    return UserError(f"cannot write: {error.strerror or error}", where=str(path), mend=mend)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UserError names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"unreadable: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path))
    return value


def read_json_if_any(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is no such file."""
    return read_json(path) if path.is_file() else {}


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` when the block ends, and leaves nothing when it raises.

    Raises:
        UserError: the system refuses to write (no space, no permission, no such directory).
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` atomically; errors as in `atomic_file`."""
    with atomic_file(path) as stream:
        stream.write(content)


def check_new_directory(path: Path) -> None:
    """UserError if something is where a new directory shall be; an empty directory is nothing."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError("the output exists already", where=str(path), mend="name another one or remove it")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty directory that takes the name ``path`` when the block ends, and leaves nothing when it raises.

    Raises:
        UserError: there is something already, or the system refuses to write.
    """
    check_new_directory(path)
    partial = temporary_name(path.absolute())
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        partial.rename(path)  # takes the place of an empty directory, too
        sync_directory(partial.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
