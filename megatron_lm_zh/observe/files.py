"""Files that are whole or not there: written to a temporary name beside the target, fsynced, then renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends well; else ``path`` stays as it was.

    One writer at a time: the temporary name is always the same, so that a killed writer leaves no second one behind.

    Raises:
        OSError: the directory does not exist, is not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_json_atomic(path: Path, obj: Any) -> None:
    """Writes ``obj`` as indented UTF-8 JSON (Chinese stays readable); a reader sees the old file or the new one."""
    text = json.dumps(obj, ensure_ascii=False, indent=2) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def open_appending(path: Path) -> BinaryIO:
    """Opens a file of lines to append to, closing first a last line that a crash tore, so that none is glued to it."""
    file = path.open("ab+")
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def append_json(file: BinaryIO, row: dict[str, Any]) -> None:
    """Appends a JSON object as one line in one write; floats keep every digit (repr), NaN and infinity become null."""
    file.write(json.dumps(_strict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")
    file.flush()


def _strict(value: Any) -> Any:
    # JSON has no NaN: Python would write a word that jq, DuckDB and browsers refuse.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _sync_directory(directory: Path) -> None:
    # The rename itself lives in the directory: without this a power cut can bring the old name back.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
