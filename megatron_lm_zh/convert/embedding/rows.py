"""The bytes of an extended table: the base's rows as they are, new rows, padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_lm_zh.convert.embedding.methods import METHODS, NORM_MATCHED, Block, Statistics
from megatron_lm_zh.convert.embedding.tables import Table
from megatron_lm_zh.tokenizer.embedding.parts import Parts

_COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Norms:
    """Mean norm of a table's rows: of the base's and of the new ones."""

    base: float
    new: float


@dataclass(frozen=True)
class Extended:
    """A table with rows for new tokens.

    Attributes:
        table: the source.
        parts: what the new tokens are made of; their rows follow the base's.
        rows: how many rows there will be. Rows behind the new ones are the source's where it has them, else zeros.
        method: name of a method.
        seed: for methods that draw; tables of equal role get equal noise.
    """

    table: Table
    parts: Parts
    rows: int
    method: str
    seed: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all its rows."""
        return self.rows * self.table.row_bytes

    def write(self, file: BinaryIO) -> Norms:
        """Writes the rows, a block at a time."""
        table, base, new = self.table, self.parts.first, self.parts.first + self.parts.count
        for block in _copied(table.raw, 0, base):
            file.write(block.data)
        statistics = Statistics.of(table, base)
        norms = 0.0
        for rows in self._new_rows(statistics):
            norms += float(rows.double().norm(dim=1).sum())
            file.write(rows.contiguous().view(torch.uint8).numpy().data)
        for block in _copied(table.raw, min(new, table.rows), table.rows):
            file.write(block.data)
        missing = (self.rows - max(new, table.rows)) * table.row_bytes
        for begin in range(0, missing, _COPY_BYTES):
            file.write(bytes(min(_COPY_BYTES, missing - begin)))
        return Norms(statistics.norm, norms / self.parts.count)

    def _new_rows(self, base: Statistics) -> Iterator[Tensor]:
        """[n, d] rows of the new tokens, in order, in the table's dtype."""
        parts, generator = self.parts, torch.Generator().manual_seed(2 * self.seed + self.table.logits)
        method = METHODS["mean" if self.table.is_bias and self.method in NORM_MATCHED else self.method]
        for begin, end in _blocks(parts.starts, self.table.block_rows):
            starts = parts.starts[begin : end + 1]
            chosen = slice(starts[0], starts[-1])
            counts = np.diff(starts)
            # what the base cannot spell has one part: the mean of all rows
            unspelled = np.flatnonzero(counts == 0)
            rows = torch.cat([self.table.gather(parts.ids[chosen]), base.mean.expand(len(unspelled), -1)])
            block = Block(
                rows=rows,
                token_bytes=torch.from_numpy(np.append(parts.token_bytes[chosen], np.ones_like(unspelled))),
                token=torch.from_numpy(np.append(np.repeat(np.arange(end - begin), counts), unspelled)),
                count=end - begin,
                base=base,
                generator=generator,
            )
            yield method(block).to(self.table.dtype)


def _blocks(starts: NDArray[np.int64], limit: int) -> Iterator[tuple[int, int]]:
    """Cuts tokens into runs of at most `limit` tokens and `limit` parts (a token of more parts is a run of its own)."""
    begin, count = 0, len(starts) - 1
    while begin < count:
        end = int(np.searchsorted(starts, starts[begin] + limit, side="right")) - 1
        end = min(max(end, begin + 1), begin + limit, count)
        yield begin, end
        begin = end


def _copied(raw: NDArray[np.uint8], begin: int, end: int) -> Iterator[NDArray[np.uint8]]:
    """Rows as they are, in blocks of memory that do not stay mapped."""
    step = max(1, _COPY_BYTES // raw.shape[1])
    for at in range(begin, end, step):
        yield np.array(raw[at : min(at + step, end)])
