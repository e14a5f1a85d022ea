"""The parts of a SentencePiece .model file that decide ids, read from its protobuf bytes without protobuf.

Format: sentencepiece_model.proto of google/sentencepiece; wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types


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
        for number, value in _fields(content):
            found.add(number)
            if number == 1:
                pieces.append(_piece(_message(value)))
            elif number == 2:
                trainer = dict(_fields(_message(value)))
            elif number == 3:
                normaliser = dict(_fields(_message(value)))
        if not pieces:
            raise ValueError("it has no pieces")
        if not {2, 3} <= found:
            raise ValueError("it is truncated: the trainer's or the normaliser's settings are missing")
        return SentencePieceFile(
            pieces=tuple(pieces),
            model_type=ModelType(int(trainer.get(3, 1))),
            byte_fallback=bool(trainer.get(35, 0)),
            treat_whitespace_as_suffix=bool(trainer.get(24, 0)),
            precompiled_charsmap=_message(normaliser.get(2, b"")),
            add_dummy_prefix=bool(normaliser.get(3, 1)),
            remove_extra_whitespaces=bool(normaliser.get(4, 1)),
            escape_whitespaces=bool(normaliser.get(5, 1)),
        )
    except (IndexError, struct.error, TypeError) as error:
        raise ValueError("it is truncated or of another format") from error


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    score = fields.get(2, b"\0\0\0\0")
    return Piece(
        text=_message(fields[1]).decode() if 1 in fields else "",
        score=struct.unpack("<f", _message(score))[0],
        type=PieceType(int(fields.get(3, 1))),
    )


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number where bytes belong")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one message: numbers for varints, raw bytes for everything else."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(content, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise IndexError("unknown wire type")
        if at + size > len(content):
            raise IndexError("past the end")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
