"""The byte-level alphabet of GPT-2: how vocabularies spell bytes as characters."""

from __future__ import annotations


def byte_alphabet() -> dict[str, int]:
    """Byte of each character: printable ones of Latin-1 stand for themselves, the others for U+0100 and up."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(0x100 + i): byte for i, byte in enumerate(moved)}
