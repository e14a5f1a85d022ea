"""What can be asked of a tokenizer that is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer

Texts = Callable[[], Iterator[str]]
"""The texts from the first one on; they are read as they are asked for, and may be asked for again."""
LEAST_COVERAGE = 0.98
"""SentencePiece's own bound."""


@dataclass(frozen=True)
class Options:
    """Options of all kinds; each kind takes some of them."""

    vocab_size: int
    """Number of token ids, special tokens included."""
    special_tokens: tuple[str, ...] = ()
    """Texts of tokens behind those that the kind has anyway; text that spells one is plain text."""
    pad_token: str | None = None
    """Text of a padding token, if there shall be one."""
    normalization: str = "identity"
    """What happens to a text before it is cut into pieces."""
    split_digits: bool = True
    """Whether each digit is a token of its own."""
    byte_fallback: bool = True
    """Whether characters without a token are spelled in bytes, rather than unknown."""
    character_coverage: float = 0.9995
    """Share of the text's characters that get a token, the most frequent ones."""
    longest_piece: int | None = None
    """Characters (byte-level: bytes) of the longest piece; None: no bound."""
    lowercase: bool = False
    """Whether letters lose case and accents."""

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise UserError(f"a vocabulary of {self.vocab_size} ids", where="--vocab-size", expected="1 or more")
        if not LEAST_COVERAGE <= self.character_coverage <= 1:
            raise UserError(
                f"{self.character_coverage}", where="--character-coverage", expected=f"{LEAST_COVERAGE} to 1"
            )
        if self.longest_piece is not None and self.longest_piece < 2:
            raise UserError(f"{self.longest_piece}", where="--longest-piece", expected="2 or more")

    def check_room(self, least: int, what_for: str) -> None:
        """Raises UserError where the vocabulary has no room for what it must hold."""
        if self.vocab_size < least:
            raise UserError(
                f"a vocabulary of {self.vocab_size} is too small",
                where="--vocab-size",
                expected=f"{least} or more, for {what_for}",
            )


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer: what trains it, and what can be asked of it."""

    train: Callable[[Texts, Options, Path], Tokenizer]
    """Trains on texts, writes the tokenizer's files into an empty directory, and loads it."""
    library: str
    """Package that trains."""
    own_tokens: tuple[str, ...]
    """Special tokens that it has anyway."""
    normalizations: tuple[str, ...]
    """Values of Options.normalization."""
    takes: tuple[str, ...]
    """Names of the options it takes, beside vocab_size, special_tokens and normalization."""
    longest_piece: int | None = None
    """Default of Options.longest_piece."""
    cleaning: str = "none"
    """What happens to every text, whatever the normalization, in words."""
