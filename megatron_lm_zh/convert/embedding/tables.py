"""Which tensors of a Hugging Face directory have a row per token id, and their rows on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_lm_zh.convert.hf_files import DTYPES, raw_header
from megatron_lm_zh.errors import UserError

INPUT = frozenset(
    {"embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embed_in", "embedding", "embeddings", "tok_emb"}
)
"""Modules of transformers and of published remote code that look ids up."""
OUTPUT = frozenset({"lm_head", "embed_out", "output_layer", "output", "head", "unembed"})
"""Modules that give each id its logit."""
COPIES = frozenset({"embed_tokens", "head"})
"""Modules of a numbered layer that are one or the other: of layers that predict further tokens (DeepSeek-V3)."""
ROW_DTYPES = ("F32", "BF16", "F16", "F64")
"""What a table may be in."""
BLOCK_BYTES = 8 << 20
"""Memory of one block of rows in 64 bits."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file; `begin` and `end` are bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its tensors in the order of their bytes."""

    path: Path
    tensors: tuple[Stored, ...]
    metadata: Mapping[str, str] | None

    @classmethod
    def read(cls, path: Path) -> Shard:
        """Reads the header; UserError where it is no safetensors file."""
        try:
            with safe_open(path, framework="pt"):  # the library checks header, offsets and the file's length
                header, start = raw_header(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"unreadable: {error}", where=str(path)) from error
        metadata = header.pop("__metadata__", None)
        tensors = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors.append(Stored(name, entry["dtype"], tuple(entry["shape"]), start + begin, start + end))
        return cls(path, tuple(sorted(tensors, key=lambda tensor: tensor.begin)), metadata)


@dataclass(frozen=True)
class Table:
    """A tensor with a row per id: [rows, d], or [rows] where it is an output layer's bias.

    Attributes:
        path: the file that holds it.
        stored: its place there.
        logits: whether its rows give logits: of an output layer, or of an embedding that is tied to it.
    """

    path: Path
    stored: Stored
    logits: bool

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return self.stored.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return (self.stored.end - self.stored.begin) // self.rows

    @property
    def is_bias(self) -> bool:
        """Whether a row is one number."""
        return len(self.stored.shape) == 1

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor."""
        return DTYPES[self.stored.dtype]

    @property
    def block_rows(self) -> int:
        """How many rows in 64 bits fit into a block."""
        return max(1, BLOCK_BYTES // (8 * (self.row_bytes // self.dtype.itemsize)))

    @cached_property
    def raw(self) -> NDArray[np.uint8]:
        """[rows, bytes] as in the file, mapped and not in memory."""
        shape = (self.rows, self.row_bytes)
        return np.memmap(self.path, np.uint8, mode="r", offset=self.stored.begin, shape=shape)

    def gather(self, ids: NDArray[np.int64]) -> Tensor:
        """[n, d] rows in fp64."""
        return torch.from_numpy(self.raw[ids]).view(self.dtype).double()

    def blocks(self, count: int) -> Iterator[Tensor]:
        """The first `count` rows in fp64, block by block."""
        for begin in range(0, count, self.block_rows):
            yield self.gather(np.arange(begin, min(begin + self.block_rows, count)))


def find_tables(shards: list[Shard], config: Mapping[str, Any], where: str) -> list[Table]:
    """The embedding, the output layer if it has one, its bias, and copies of them.

    Raises:
        UserError: there is no embedding; it has another number of rows than config.json says or a dtype without
            arithmetic; or another tensor has a row per id.
    """
    size, tied = config["vocab_size"], config.get("tie_word_embeddings")
    found: list[tuple[Path, Stored, str]] = []
    for shard in shards:
        for stored in shard.tensors:
            kind = _kind(stored)
            if stored.shape[:1] != (size,):
                if kind and not _is_numbered(stored.name):
                    what = f"{stored.name} has {stored.shape[0]:,} rows"
                    expected = f"{size:,}, which is config.json's vocab_size"
                    raise UserError(what, where=str(shard.path), expected=expected)
                continue
            if not kind and not _is_numbered(stored.name):
                what = f"{stored.name} has a row per id and is no embedding or output layer that is known"
                raise UserError(what, where=str(shard.path), expected=f"one of {', '.join(sorted(INPUT | OUTPUT))}")
            if kind and stored.dtype not in ROW_DTYPES:
                raise UserError(
                    f"{stored.name} is {stored.dtype}", where=str(shard.path), expected=", ".join(ROW_DTYPES)
                )
            if kind:
                found.append((shard.path, stored, kind))
    if not any(kind in INPUT for _, _, kind in found):
        raise UserError("no embedding in its files", where=where, expected=f"one of {', '.join(sorted(INPUT))}")
    has_output = any(kind in OUTPUT for _, _, kind in found)
    if tied is False and not has_output:
        raise UserError("no output layer in its files, though tie_word_embeddings is false", where=where)
    all_give_logits = tied is True or not has_output
    return [Table(path, stored, all_give_logits or kind in OUTPUT) for path, stored, kind in found]


def _kind(stored: Stored) -> str:
    """The module's name if it is one of INPUT or OUTPUT, else empty."""
    *modules, parameter = stored.name.split(".")
    known = COPIES if _is_numbered(stored.name) else INPUT | OUTPUT
    return modules[-1] if parameter in ("weight", "bias") and modules and modules[-1] in known else ""


def _is_numbered(name: str) -> bool:
    """Whether a tensor is one of many: of a layer or an expert."""
    return any(word.isdigit() for word in name.split("."))
