"""Chunks of JSON lines and the token ids of their documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_lm_zh.data.indexed import dtype_for
from megatron_lm_zh.tokenizer.base import Tokenizer

CHUNK_BYTES = 1 << 19
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file: small to send to a worker, which reads them itself."""

    path: Path
    file: int
    """Number of the file in the job."""
    offset: int
    size: int
    first_line: int
    """Number of its first line in the file, from 1."""


@dataclass(frozen=True)
class EncodedText:
    """The documents of a chunk under one key."""

    tokens: NDArray
    lengths: NDArray[np.int32]
    bytes: int
    characters: int


@dataclass(frozen=True)
class EncodedChunk:
    """What became of a chunk."""

    file: int
    size: int
    documents: int
    texts: dict[str, EncodedText]
    errors: list[tuple[int, str]]
    """Line number and reason of every line that is no document."""


class BrokenLineError(Exception):
    """A line that is no document; the message says why."""


def read_chunks(path: Path, file: int, digest: hashlib._Hash, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cuts a file into chunks of whole lines of about ``size`` bytes; ``digest`` sees every byte of the file."""
    offset, line = 0, 1
    with path.open("rb") as stream:
        while block := stream.read(size):
            if not block.endswith(b"\n"):
                block += stream.readline()
            digest.update(block)
            yield Chunk(path, file, offset, len(block), line)
            offset += len(block)
            line += block.count(b"\n")


def encode_chunk(chunk: Chunk, tokenizer: Tokenizer, keys: Sequence[str], *, append_eod: bool) -> EncodedChunk:
    """Token ids of a chunk's documents. A line that is broken under one key is left out under all of them."""
    with chunk.path.open("rb") as stream:
        stream.seek(chunk.offset)
        content = stream.read(chunk.size)
    if chunk.offset == 0:
        content = content.removeprefix(BYTE_ORDER_MARK)
    ids: dict[str, list[list[int]]] = {key: [] for key in keys}
    sizes = {key: [0, 0] for key in keys}
    errors: list[tuple[int, str]] = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), chunk.first_line):
        try:
            document = _parse(line, keys)
            encoded = {key: _encode(text, key, tokenizer) for key, text in document.items()}
        except BrokenLineError as error:
            errors.append((number, str(error)))
            continue
        for key, text in document.items():
            ids[key].append([*encoded[key], tokenizer.eod] if append_eod else encoded[key])
            sizes[key][0] += len(text.encode())
            sizes[key][1] += len(text)
    dtype = dtype_for(tokenizer.vocab_size)
    texts = {
        key: EncodedText(
            tokens=np.array([id_ for document in ids[key] for id_ in document], dtype=dtype),
            lengths=np.array([len(document) for document in ids[key]], dtype=np.int32),
            bytes=sizes[key][0],
            characters=sizes[key][1],
        )
        for key in keys
    }
    return EncodedChunk(chunk.file, chunk.size, len(ids[keys[0]]), texts, errors)


def _parse(line: bytes, keys: Sequence[str]) -> dict[str, str]:
    """The texts of a line under ``keys``."""
    if not line.strip():
        raise BrokenLineError("empty line")
    try:
        content = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BrokenLineError(f"not UTF-8: byte {line[error.start]:#04x} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise BrokenLineError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise BrokenLineError(f"not usable JSON: {error}") from error
    if not isinstance(content, dict):
        raise BrokenLineError(f"not a JSON object but {type(content).__name__}")
    texts = {}
    for key in keys:
        if key not in content:
            found = ", ".join(list(content)[:8]) or "none"
            raise BrokenLineError(f'no key "{key}" (keys: {found})')
        text = content[key]
        if not isinstance(text, str):
            raise BrokenLineError(f'"{key}" is not text but {type(text).__name__}')
        texts[key] = text
    return texts


def _encode(text: str, key: str, tokenizer: Tokenizer) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise BrokenLineError(f'"{key}" has half a surrogate pair, \\u{code:04x}, which is no character') from error
    ids = tokenizer.encode(text)
    if not ids:
        raise BrokenLineError(f'empty document: "{key}" has no text')
    return ids
