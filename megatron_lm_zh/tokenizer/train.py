"""Training a tokenizer on text files: the same input and options give the same files, on every machine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import new_directory, write_bytes
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.texts import TextFiles
from megatron_lm_zh.tokenizer.training.kinds import KINDS, kind_named, options_for
from megatron_lm_zh.tokenizer.training.options import Options

RECORD_FILE = "training.json"
"""What the tokenizer was trained on, and how."""
LOOK_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    bytes_done: int
    """Of the files, read so far; counted again where they are read again."""
    bytes_total: int
    is_read: bool
    """Whether all text is read, and the library is at work on it."""
    seconds: float


def train_tokenizer(
    inputs: Sequence[Path] | TextFiles,
    output: Path,
    *,
    vocab_size: int,
    model_type: str = "bpe",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> Path:
    """Trains a tokenizer and writes its files into a new directory, with ``training.json``, which says how.

    Unless options say otherwise, text is taken as it is (no normalisation), digits are tokens of their own, and every
    text comes back exactly: from SentencePiece's kinds but for U+2581, which stands for a space, and from WordPiece not
    at all, as it forgets white space.

    Args:
        inputs: .jsonl, .txt or .parquet files, or a part of them.
        output: a new or empty directory; it appears when all is written.
        vocab_size: number of token ids.
        model_type: a key of `KINDS`.
        on_progress: is told every moment how far it is.
        options: fields of `Options`.

    Returns:
        The directory. It loads as type HuggingFace; that of a SentencePiece model as type SentencePiece, too.

    Raises:
        UserError: an input is missing or broken, the vocabulary size does not suit the text, an option does not suit
            the kind, or the output is taken or cannot be written.
    """
    kind, asked = kind_named(model_type), options_for(model_type, vocab_size, options)
    files = inputs if isinstance(inputs, TextFiles) else TextFiles(tuple(inputs))
    reader = _Reader(files)
    with new_directory(output) as directory:
        try:
            tokenizer = _apart(
                lambda: kind.train(reader.texts, asked, directory), lambda: on_progress(reader.progress())
            )
        except Exception:
            if reader.error is not None:  # the libraries wrap it in an error of their own
                raise reader.error from None
            if reader.read and reader.blank:
                raise UserError("no text to train on", where=", ".join(map(str, files.paths))) from None
            raise
        _check_special_tokens(tokenizer, asked)
        record = _record(model_type, asked, reader, tokenizer)
        write_bytes(directory / RECORD_FILE, (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())
    return output


class _Reader:
    """Hands texts to a library, and remembers what came of it."""

    def __init__(self, files: TextFiles) -> None:
        self.files = files
        self.error: Exception | None = None
        self._total = sum(path.stat().st_size for path in files.paths)
        self._started = time.monotonic()
        self._restart()

    def _restart(self) -> None:
        self.count = self.characters = self._done = 0
        self.read, self.blank = False, True

    def texts(self) -> Iterator[str]:
        """The texts, from the first one on."""
        self._restart()
        try:
            for text in self.files.texts(self._add):
                self.count += 1
                self.characters += len(text)
                self.blank = self.blank and not text.strip()
                yield text
        except Exception as error:
            self.error = error
            raise
        self.read = True

    def _add(self, bytes_: int) -> None:
        self._done += bytes_

    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self._done, self._total, self.read, time.monotonic() - self._started)


def _apart(call: Callable[[], Tokenizer], look: Callable[[], None]) -> Tokenizer:
    """Runs a library's training in a thread of its own: this one says that it is alive, and obeys Ctrl-C."""
    future: Future[Tokenizer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = Thread(target=run, daemon=True)
    look()
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_EVERY)
        look()
    return future.result()


def _check_special_tokens(tokenizer: Tokenizer, options: Options) -> None:
    """Text that spells a special token is plain text, so no such token may be a piece of text as well."""
    for token in options.special_tokens if options.pad_token is None else (options.pad_token, *options.special_tokens):
        special = set(tokenizer.encode_special(token))
        if len(special) != 1 or special & set(tokenizer.encode(token)):
            raise UserError(
                f"{token!r} is a piece of plain text",
                where="--special-tokens",
                expected=f"what text does not hold, such as <|{token}|>",
            )


def _record(model_type: str, options: Options, reader: _Reader, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of training.json; nothing in it depends on the machine or the time."""
    kind, files = KINDS[model_type], reader.files
    taken = asdict(options)
    return {
        "model_type": model_type,
        "options": {
            name: taken[name]
            for name in taken
            if name in ("vocab_size", "special_tokens", "normalization", *kind.takes)
        },
        "cleaning": kind.cleaning,
        "inputs": [{"path": str(path), "bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files.paths],
        "sample": {"json_key": files.json_key, "share": files.share, "seed": files.seed},
        "texts": reader.count,
        "characters": reader.characters,
        "libraries": {kind.library: version(kind.library)},
        "vocab_size": tokenizer.vocab_size,
        "end_of_document": tokenizer.eod,
        "fingerprint": tokenizer.fingerprint,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
