"""Texts that a vocabulary is learnt from: .txt, .jsonl and .parquet files, whole or a random part of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lm_zh import compat
from megatron_lm_zh.errors import UserError

BLOCK = 1 << 14
"""Characters of a .txt file that make one text, cut at the end of a line."""
KINDS = (".txt", ".jsonl", ".parquet")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KEYS_SHOWN = 8


@dataclass(frozen=True)
class TextFiles:
    """Files, and which part of their texts is taken.

    Raises:
        UserError: a file is missing or of another kind, or the share is none.
    """

    paths: tuple[Path, ...]
    json_key: str = "text"
    """Key (.jsonl) or column (.parquet) of the text."""
    share: float = 1.0
    """Of the texts that is taken, by chance."""
    seed: int = 1234
    """Of that chance."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"a share of {self.share}", expected="more than 0, at most 1")
        for path in self.paths:
            if path.suffix not in KINDS:
                raise UserError(f"unknown kind of file {path.suffix!r}", where=str(path), expected=" or ".join(KINDS))
            if not path.is_file():
                raise UserError("no such file", where=str(path))

    def texts(self, on_bytes: Callable[[int], None] = lambda bytes_: None) -> Iterator[str]:
        """Texts in the files' order, read as they are asked for; the same ones each time.

        Args:
            on_bytes: is told now and then how many bytes more were read.

        Raises:
            UserError: a file cannot be read or is broken.
        """
        rng = random.Random(self.seed)
        for path in self.paths:
            for text in _texts(path, self.json_key, on_bytes):
                if self.share == 1 or rng.random() < self.share:
                    yield text


def read_texts(paths: Sequence[Path], *, json_key: str = "text", share: float = 1.0, seed: int = 1234) -> list[str]:
    """All texts of `TextFiles` at once.

    Raises:
        UserError: as there, or nothing is left.
    """
    texts = list(TextFiles(tuple(paths), json_key, share, seed).texts())
    if not any(texts):
        raise UserError("no text to learn from", where=", ".join(map(str, paths)))
    return texts


def _texts(path: Path, json_key: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    try:
        if path.suffix == ".parquet":
            yield from _column(path, json_key, on_bytes)
        elif path.suffix == ".jsonl":
            for number, line in _lines(path, on_bytes):
                yield _text_of(line, json_key, f"{path}:{number}")
        else:
            yield from _blocks(path, on_bytes)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _lines(path: Path, on_bytes: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; a line feed alone ends one, and stays."""
    number = read = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield number, (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).decode()
                read += len(line)
                if read >= BLOCK:
                    on_bytes(read)
                    read = 0
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error.reason}", where=f"{path}:{number}") from error
    on_bytes(read)


def _blocks(path: Path, on_bytes: Callable[[int], None]) -> Iterator[str]:
    block: list[str] = []
    size = 0
    for _, line in _lines(path, on_bytes):
        block.append(line)
        size += len(line)
        if size >= BLOCK:
            yield "".join(block)
            block, size = [], 0
    if block:
        yield "".join(block)


def _text_of(line: str, json_key: str, where: str) -> str:
    expected = f'a JSON object with a text "{json_key}"'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"broken line: {error}", where=where, expected=expected) from error
    if not isinstance(record, dict):
        raise UserError(f"broken line: no object but {type(record).__name__}", where=where, expected=expected)
    if json_key not in record:
        raise UserError(f'broken line: no key "{json_key}" (keys: {_shown(record)})', where=where, expected=expected)
    return _checked(record[json_key], json_key, where)


def _checked(text: Any, key: str, where: str) -> str:
    """The text, if it is one; half a surrogate pair, which JSON can spell, is no character."""
    if not isinstance(text, str):
        raise UserError(f'"{key}" is no text but {type(text).__name__}', where=where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{error.reason} at character {error.start}", where=where) from error
    return text


def _shown(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(list(names)[:KEYS_SHOWN])


def _column(path: Path, name: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    parquet = compat.optional("pyarrow.parquet", "a .parquet file", "data")
    size, row = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            if name not in file.schema_arrow.names:
                raise UserError(f'no column "{name}" (columns: {_shown(file.schema_arrow.names)})', where=str(path))
            rows, told = max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(columns=[name]):
                for row, text in enumerate(batch.column(0).to_pylist(), row + 1):  # noqa: B020 - goes on counting
                    if text is not None and text != "":
                        yield _checked(text, name, f"{path}: row {row}")
                on_bytes(size * row // rows - told)
                told = size * row // rows
    except ValueError as error:
        raise UserError(f"not read: {error}", where=str(path), expected=f"Parquet with a column {name!r}") from error
