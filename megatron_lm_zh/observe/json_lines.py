"""Files of JSON lines: appended to line by line, mended where a crash tore one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO


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
