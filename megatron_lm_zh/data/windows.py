"""A whole text cut into windows for evaluation: every token but the first is predicted once, whoever the model is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_lm_zh.data.indexed import IndexedDataset, idx_path
from megatron_lm_zh.data.manifest import check_manifest
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Windows:
    """Consecutive windows over the tokens of all documents, in the order of the data."""

    tokens: NDArray[np.int64]
    """All tokens, documents closed by their end-of-document token where the data have it."""
    seq_length: int
    """Targets in one window."""

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.seq_length)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Every predicted token."""
        return self.tokens[1:]

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Ids [b, seq_length + 1] and which of their targets count [b, seq_length]; the end is filled up with id 0."""
        for first in range(0, len(self), size):
            numbers = range(first, min(first + size, len(self)))
            ids = np.zeros((len(numbers), self.seq_length + 1), dtype=np.int64)
            counts = np.zeros((len(numbers), self.seq_length), dtype=bool)
            for row, number in enumerate(numbers):
                piece = self.tokens[number * self.seq_length : (number + 1) * self.seq_length + 1]
                ids[row, : len(piece)] = piece
                counts[row, : len(piece) - 1] = True
            yield ids, counts


def read_windows(data: str, tokenizer: Tokenizer, seq_length: int) -> Windows:
    """The windows of a dataset (prefix of a .bin/.idx pair) or of a JSONL file with a `text` a line.

    Raises:
        UserError: there is no such data, it was made with another tokenizer, or it has fewer than two tokens.
    """
    if idx_path(data).is_file():
        check_manifest(data, tokenizer)
        dataset = IndexedDataset(data)
        pieces = [np.asarray(dataset[index], dtype=np.int64) for index in range(len(dataset))]
    elif Path(data).is_file():
        pieces = [np.array([*tokenizer.encode(text), tokenizer.eod]) for text in _texts(Path(data))]
    else:
        raise UserError("no such data", where=data, expected="the prefix of a .bin/.idx pair, or a JSONL file")
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
    if len(tokens) < 2:
        raise UserError(f"{len(tokens)} tokens, nothing to predict", where=data)
    return Windows(tokens.astype(np.int64), seq_length)


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError('not a JSON object with a "text"', where=f"{path}:{number}") from error
