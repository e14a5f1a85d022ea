"""One shard to its work files: token ids and lengths for every key, and, last, a small file that counts them."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_lm_zh.data import _text
from megatron_lm_zh.data.text.documents import Block
from megatron_lm_zh.data.text.plan import Part, Shard, TxtDocument
from megatron_lm_zh.data.text.reading import checksum, read_blocks
from megatron_lm_zh.data.text.sources import Source
from megatron_lm_zh.files import temporary_name, write_bytes, write_error
from megatron_lm_zh.tokenizer.encoders import Encoder, SpecialTokens, encoder_named
from megatron_lm_zh.tokenizer.load import load_tokenizer

ERRORS_KEPT = 100  # reasons kept of a shard; all are counted
TELL_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Told:
    """How far a task is."""

    bytes: int = 0
    documents: int = 0
    tokens: int = 0


Tell = Callable[[Told], None]


@dataclass(frozen=True)
class Recipe:
    """What decides the ids, and where they go: all that a worker needs beside the tokenizer itself."""

    directory: str
    tokenizer_type: str
    tokenizer_path: str
    encoder: str
    special_tokens: SpecialTokens
    keys: tuple[str, ...]
    dtype: str
    eod: int | None
    """Id put after every document; None: nothing."""
    txt: TxtDocument
    stop: bool
    """Stop at the first broken record."""


class Task(Protocol):
    """Work that one worker does at a time; small and picklable."""

    @property
    def name(self) -> str:
        """Different for every task of a job."""
        ...

    def run(self, recipe: Recipe, encoder: Callable[[], Encoder], tell: Tell) -> dict[str, Any]:
        """Does the work, writes its files, the one that says so last, and returns what that one says."""
        ...


@functools.lru_cache(maxsize=1)
def encoder_of(recipe: Recipe) -> Encoder:
    """The encoder in a process that was not forked from one that has it."""
    tokenizer = load_tokenizer(recipe.tokenizer_type, recipe.tokenizer_path)
    return encoder_named(recipe.encoder, tokenizer, recipe.special_tokens)


def work_file(directory: str | Path, name: str, suffix: str) -> Path:
    """A file of a task: `<name>.json` what it says, `<name>-<key>.bin` ids, `<name>-<key>.len` lengths (int32)."""
    return Path(directory) / f"{name}{suffix}"


class WorkFiles:
    """Files of a task that take their names together when the block ends, and vanish when it raises."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._temporary = [temporary_name(path) for path in paths]
        self.streams: list[BinaryIO] = []

    def __enter__(self) -> list[BinaryIO]:
        with ExitStack() as stack:
            self.streams = [stack.enter_context(path.open("wb", buffering=0)) for path in self._temporary]  # type: ignore[misc]
            stack.pop_all()
        return self.streams

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            for stream, temporary, path in zip(self.streams, self._temporary, self._paths, strict=True):
                if kind is None:
                    os.fsync(stream.fileno())
                    temporary.replace(path)
        finally:
            for stream, temporary in zip(self.streams, self._temporary, strict=True):
                stream.close()
                temporary.unlink(missing_ok=True)


def write_all(stream: BinaryIO, content: NDArray | bytes) -> None:
    """Writes all of an array; an unbuffered stream may take a part at a time."""
    view = memoryview(content).cast("B") if len(content) else memoryview(b"")  # type: ignore[arg-type]
    while view.nbytes:
        view = view[stream.write(view) :]


@dataclass(frozen=True)
class Checksum:
    """Task: SHA-256 of a source that no single worker reads from its beginning to its end."""

    number: int
    source: Source
    name: str

    def run(self, recipe: Recipe, encoder: Callable[[], Encoder], tell: Tell) -> dict[str, Any]:
        """Reads the source once; see `Task`."""
        said = {"sha256": checksum(self.source)}
        write_bytes(work_file(recipe.directory, self.name, ".json"), orjson.dumps(said))
        return said


@dataclass(frozen=True)
class Tokenize:
    """Task: the documents of a shard to ids."""

    shard: Shard

    @property
    def name(self) -> str:
        """The shard's."""
        return self.shard.name

    def run(self, recipe: Recipe, encoder: Callable[[], Encoder], tell: Tell) -> dict[str, Any]:
        """Writes the shard's work files; see `Task`. A broken record, with `stop`, is said instead of them.

        Raises:
            UserError: a source cannot be read, or a file not written.
        """
        keys = range(len(recipe.keys))  # numbers, since their own names may be anything
        suffixes = [f"-{key}{suffix}" for suffix in (".bin", ".len") for key in keys]
        paths = [work_file(recipe.directory, self.name, suffix) for suffix in suffixes]
        try:
            writing = WorkFiles(paths)
            with writing as streams:
                made = _Making(recipe, encoder(), streams, tell)
                parts = [made.add(part) for part in self.shard.parts]
            said = {"parts": parts, "bytes": self.shard.size}
            write_bytes(work_file(recipe.directory, self.name, ".json"), orjson.dumps(said))
        except _BrokenError as error:
            return {"broken": error.args[0]}
        except OSError as error:
            raise write_error(Path(recipe.directory), error) from error
        return said


class _BrokenError(Exception):
    """Ends a shard at a broken record: (number of its source, its number in the part, the part's place, reason)."""


class _Making:
    """A shard's streams and its running sums."""

    def __init__(self, recipe: Recipe, encoder: Encoder, streams: list[BinaryIO], tell: Tell) -> None:
        self.recipe, self.encoder, self.tell = recipe, encoder, tell
        count = len(recipe.keys)
        self.tokens, self.lengths = streams[:count], streams[count:]
        self.dtype = np.dtype(recipe.dtype)
        self.done = 0
        self.documents = 0
        self.written = 0
        self.told = time.monotonic()
        self.errors_kept = 0

    def add(self, part: Part) -> dict[str, Any]:
        """Tokenizes a part; returns what it holds."""
        digest = hashlib.sha256() if part.is_whole or part.source.format == "hf" else None
        sums: dict[str, Any] = {"documents": 0, "records": 0, "skipped": 0, "errors": []}
        sums["texts"] = [[0, 0, 0, 0] for _ in self.recipe.keys]  # tokens, bytes, characters, Han characters
        for block in read_blocks(part, self.recipe.keys, self.recipe.txt, digest):
            self._encode(block, sums)
            if block.errors and self.recipe.stop:
                number, reason = min(block.errors)
                raise _BrokenError({"part": self._place(part), "record": number, "reason": reason})
            sums["records"] += block.records
            sums["skipped"] += len(block.errors)
            room = max(0, ERRORS_KEPT - self.errors_kept)
            sums["errors"] += sorted(block.errors)[:room]
            self.errors_kept += len(block.errors[:room])
            if time.monotonic() - self.told > TELL_EVERY:
                self.told = time.monotonic()
                self.tell(Told(self.done + block.position, self.documents, self.written))
        self.done += part.size
        sums["sha256"] = digest.hexdigest() if digest else None
        return sums

    def _place(self, part: Part) -> list[int]:
        return [part.number, part.begin]

    def _encode(self, block: Block, sums: dict[str, Any]) -> None:
        if not block.numbers:
            return
        encoded = [self.encoder.encode_batch(block.texts[key]) for key in self.recipe.keys]
        full = np.logical_and.reduce([lengths > 0 for _, lengths in encoded])
        if not full.all():
            encoded = self._without_empty(block, encoded, full)
        for number, (key, (ids, lengths)) in enumerate(zip(self.recipe.keys, encoded, strict=True)):
            content = self._with_ends(ids, lengths)
            write_all(self.tokens[number], content)
            write_all(self.lengths[number], lengths + np.int32(self.recipe.eod is not None))
            counts = (content.size, *_text.count(block.texts[key]))
            sums["texts"][number] = [old + new for old, new in zip(sums["texts"][number], counts, strict=True)]
            self.written += content.size if number == 0 else 0
        sums["documents"] += len(block.numbers)
        self.documents += len(block.numbers)

    def _without_empty(
        self, block: Block, encoded: list[tuple[NDArray[np.uint32], NDArray[np.int32]]], full: NDArray[np.bool_]
    ) -> list[tuple[NDArray[np.uint32], NDArray[np.int32]]]:
        """Leaves a document that has no ids under one key out under all, as a broken record."""
        for place in np.flatnonzero(~full):
            key = next(k for k, (_, lengths) in zip(self.recipe.keys, encoded, strict=True) if not lengths[place])
            block.errors.append((block.numbers[place], f'empty document: "{key}" has no text'))
        kept = full.tolist()
        block.numbers = [number for number, keep in zip(block.numbers, kept, strict=True) if keep]
        for key, texts in block.texts.items():
            block.texts[key] = [text for text, keep in zip(texts, kept, strict=True) if keep]
        return [(ids[np.repeat(full, lengths)], lengths[full]) for ids, lengths in encoded]

    def _with_ends(self, ids: NDArray[np.uint32], lengths: NDArray[np.int32]) -> NDArray:
        """The ids in the dataset's dtype, with the end-of-document id after each document where it is asked for."""
        if self.recipe.eod is None:
            return ids.astype(self.dtype)
        ends = np.cumsum(lengths, dtype=np.int64) + np.arange(len(lengths))
        content = np.empty(len(ids) + len(lengths), self.dtype)
        inside = np.ones(len(content), np.bool_)
        inside[ends] = False
        content[inside] = ids
        content[ends] = self.recipe.eod
        return content
