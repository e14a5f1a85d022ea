"""The record that an extended tokenizer's directory holds: what was added to which base."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_lm_zh.errors import UserError

RECORD_FILE = "extension.json"


def base_vocab_size(path: str | Path) -> int | None:
    """Ids of the base that a tokenizer was extended from; None where it has no record of an extension.

    Args:
        path: the tokenizer's directory, or a file in it.

    Raises:
        UserError: the record cannot be read.
    """
    path = Path(path)
    record = (path if path.is_dir() else path.parent) / RECORD_FILE
    if not record.is_file():
        return None
    try:
        size = json.loads(record.read_bytes())["base_vocab_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"no record of an extension ({type(error).__name__})", where=str(record)) from error
    if not isinstance(size, int):
        raise UserError(f"base_vocab_size is {size!r}", where=str(record), expected="a number of ids")
    return size
