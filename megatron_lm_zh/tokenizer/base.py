"""What the rest of the house knows about a tokenizer: one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids: the largest id + 1."""
        ...

    @property
    def eod(self) -> int:
        """Id that ends a document (the tokenizer's end-of-sequence token)."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that decides ids; equal where two tokenizers are the same one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``. No special token is added, and text that looks like one is plain text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; special tokens are left out, bytes that are no character become U+FFFD."""
        ...

    def token_sizes(self) -> NDArray[np.int64]:
        """[vocab_size, 2]: UTF-8 bytes of each token's text, and characters that begin in it; 0 for special tokens."""
        ...

    def save_huggingface(self, directory: Path) -> None:
        """Writes the files from which ``transformers.AutoTokenizer`` loads this same tokenizer.

        ``AutoTokenizer`` matches special tokens in text, as is its habit; ``split_special_tokens=True`` makes its ids
        those of `encode` for such text, too.
        """
        ...


def sizes_of_bytes(pieces: list[bytes]) -> NDArray[np.int64]:
    """[n, 2]: length of each piece, and how many UTF-8 characters begin in it (all but continuation bytes)."""
    return np.array([(len(piece), sum(byte & 0xC0 != 0x80 for byte in piece)) for piece in pieces], dtype=np.int64)
