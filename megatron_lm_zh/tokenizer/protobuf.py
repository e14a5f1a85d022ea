"""Protobuf messages field by field, without protobuf: SentencePiece's classes load with its newest versions alone.

Wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Kinds of fields."""
_SIZES = {FIXED64: 8, FIXED32: 4}


def fields(content: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Number, kind and value of each field of a message: an int for a VARINT, bytes for all else.

    Raises:
        IndexError: the message is cut short, or is none.
    """
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(content, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(content, at)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise IndexError("unknown wire type")
        if at + size > end:
            raise IndexError("past the end")
        yield number, kind, content[at : at + size]
        at += size


def field(number: int, kind: int, value: int | bytes) -> bytes:
    """A field as `fields` reads it."""
    tag = _bytes_of(number << 3 | kind)
    if isinstance(value, int):
        return tag + _bytes_of(value)
    return tag + (_bytes_of(len(value)) if kind == BYTES else b"") + value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _bytes_of(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
