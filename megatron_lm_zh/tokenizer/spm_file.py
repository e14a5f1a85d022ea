"""The parts of a SentencePiece .model file that decide ids, and the file with more pieces.

Format: sentencepiece_model.proto of google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from megatron_lm_zh.tokenizer.protobuf import BYTES, FIXED32, VARINT, field, fields

PIECES, TRAINER, NORMALISER = 1, 2, 3
"""Fields of ModelProto."""
VOCAB_SIZE = 4
"""Field of TrainerSpec."""


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    """TrainerSpec.ModelType."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceFile:
    """What a .model file says; field names and defaults are the format's."""

    pieces: tuple[Piece, ...]
    model_type: ModelType
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    split_by_unicode_script: bool
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse_model(content: bytes) -> SentencePieceFile:
    """Reads a .model file.

    Raises:
        ValueError: ``content`` is no SentencePiece model.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    found = set()
    try:
        for number, _, value in fields(content):
            found.add(number)
            if number == PIECES:
                pieces.append(_piece(_values(value)))
            elif number == TRAINER:
                trainer = _values(value)
            elif number == NORMALISER:
                normaliser = _values(value)
        if not pieces:
            raise ValueError("it has no pieces")
        if not {TRAINER, NORMALISER} <= found:
            raise ValueError("it is truncated: the trainer's or the normaliser's settings are missing")
        return SentencePieceFile(
            pieces=tuple(pieces),
            model_type=ModelType(int(trainer.get(3, 1))),
            byte_fallback=bool(trainer.get(35, 0)),
            treat_whitespace_as_suffix=bool(trainer.get(24, 0)),
            split_by_unicode_script=bool(trainer.get(21, 1)),
            precompiled_charsmap=_bytes(normaliser.get(2, b"")),
            add_dummy_prefix=bool(normaliser.get(3, 1)),
            remove_extra_whitespaces=bool(normaliser.get(4, 1)),
            escape_whitespaces=bool(normaliser.get(5, 1)),
        )
    except (IndexError, struct.error, TypeError) as error:
        raise ValueError("it is truncated or of another format") from error


def with_pieces(content: bytes, pieces: Iterable[tuple[str, float]], vocab_size: int) -> bytes:
    """A .model file's bytes with more normal pieces behind the old ones; all other fields stay.

    Args:
        content: the file.
        pieces: text and score of each.
        vocab_size: pieces then; TrainerSpec says it as well.
    """
    have = list(fields(content))
    old = (field(*one) for one in have if one[0] == PIECES)
    new = (
        field(PIECES, BYTES, field(1, BYTES, text.encode()) + field(2, FIXED32, struct.pack("<f", score)))
        for text, score in pieces
    )
    rest = (_resized(*one, vocab_size) for one in have if one[0] != PIECES)
    return b"".join((*old, *new, *rest))


def _resized(number: int, kind: int, value: int | bytes, vocab_size: int) -> bytes:
    if number != TRAINER:
        return field(number, kind, value)
    kept = b"".join(field(*one) for one in fields(_bytes(value)) if one[0] != VOCAB_SIZE)
    return field(TRAINER, BYTES, kept + field(VOCAB_SIZE, VARINT, vocab_size))


def _piece(values: dict[int, int | bytes]) -> Piece:
    return Piece(
        text=_bytes(values.get(1, b"")).decode(),
        score=struct.unpack("<f", _bytes(values.get(2, b"\0\0\0\0")))[0],
        type=PieceType(int(values.get(3, 1))),
    )


def _values(message: int | bytes) -> dict[int, int | bytes]:
    """Values of a message by the fields' numbers."""
    return {number: value for number, _, value in fields(_bytes(message))}


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number where bytes belong")
    return value
