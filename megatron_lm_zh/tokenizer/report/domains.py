"""Texts to measure tokenizers on: the lines of a file of text, or the documents of JSONL and Parquet."""

from __future__ import annotations

import itertools
from pathlib import Path

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.report.figures import Domain
from megatron_lm_zh.tokenizer.texts import TextFiles

OF_DOCUMENTS = (".jsonl", ".parquet")


def read_domain(path: Path, name: str = "", *, json_key: str = "text", most: int | None = None) -> Domain:
    """The texts of a file that are not blank.

    Args:
        path: ``.jsonl`` and ``.parquet`` hold a text a record; each line of any other file is a text.
        name: what the domain is called; the file's name without its ending, where empty.
        json_key: key or column of the text.
        most: only the first so many texts.

    Raises:
        UserError: the file cannot be read, is broken, or has no text.
    """
    given = TextFiles((path,), json_key).texts() if path.suffix in OF_DOCUMENTS else _lines(path)
    texts = tuple(itertools.islice((text for text in given if text.strip()), most))
    if not texts:
        raise UserError("no text in it", where=str(path))
    return Domain(name or path.stem, texts)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error.reason}", where=str(path)) from error
