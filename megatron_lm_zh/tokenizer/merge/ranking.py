"""A base with new pieces in the order of their ranks: its merges, what each text becomes, and what can be left out."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megatron_lm_zh.tokenizer import _bpe
from megatron_lm_zh.tokenizer.merge.bases import END, Base

Symbols = NDArray[np.int32]
BLOCK = 4096
"""Tokens of a part of the text, within which a word may be met again for the same cause."""
CAUTION = 0.5
"""Standard errors that a piece's count is taken down by when the least useful pieces are sought."""


@dataclass(frozen=True)
class Ranked:
    """A base and new pieces.

    Attributes:
        base: the base.
        pieces: new texts, best rank first; all rank after the base's.
    """

    base: Base
    pieces: tuple[bytes, ...]

    @cached_property
    def symbols(self) -> dict[bytes, int]:
        """Symbol of each text; new pieces are numbered after the base's."""
        texts = (*self.base.texts, *self.pieces)
        return {text: symbol for symbol, text in enumerate(texts)}

    @cached_property
    def characters(self) -> tuple[str, ...]:
        """New pieces of one character, which text is spelled in before any merge (none of a byte-level base)."""
        if self.base.kind == "byte-level":
            return ()
        return tuple(text.decode() for text in self.pieces if len(text.decode()) == 1)

    @cached_property
    def added_merges(self) -> Symbols:
        """[m, 4]: every pair that spells a new piece; and every pair with a new piece that spells one of the base's.

        Of one piece's pairs the one with the longest left part comes first.
        """
        first = 1 + max(int(self.base.merges[:, 3].max(initial=-1)), int(self.base.ranks.max(initial=-1)))
        symbols, size = self.symbols, len(self.base.texts)
        existing = {(left, right) for left, right in self.base.merges[:, :2].tolist()}
        rows = []
        for symbol, text in enumerate(self.base.texts if self.pieces else ()):
            pairs = [pair for pair in self._pairs(text) if max(pair) >= size]
            rows += [(*pair, symbol, int(self.base.ranks[symbol])) for pair in pairs]
        rows.sort(key=lambda row: row[3])
        for number, text in enumerate(self.pieces):
            pairs = [pair for pair in self._pairs(text) if pair not in existing]
            rows += [(*pair, symbols[text], first + number) for pair in pairs]
        return np.array(rows, np.int32).reshape(-1, 4)

    def _pairs(self, text: bytes) -> list[tuple[int, int]]:
        symbols, found = self.symbols, []
        for cut in range(len(text) - 1, 0, -1):
            left, right = symbols.get(text[:cut]), symbols.get(text[cut:])
            if left is not None and right is not None:
                found.append((left, right))
        return found

    @cached_property
    def merges(self) -> Symbols:
        """[m, 4]: the base's merges, then those of the new pieces."""
        return np.concatenate([self.base.merges, self.added_merges])

    @cached_property
    def columns(self) -> list[Symbols]:
        """The merges' left, right and made symbols and ranks, each a vector."""
        return [np.ascontiguousarray(column) for column in self.merges.T]

    def spell(self, texts: Iterable[str]) -> Symbols:
        """Symbols before any merge."""
        return self._own(self.base.spell(texts, self.characters))

    def _own(self, spelled: Symbols) -> Symbols:
        """The symbols of single characters are numbered among the pieces; `Base.spell` numbers them by themselves."""
        if not self.characters:
            return spelled
        table = np.array([self.symbols[character.encode()] for character in self.characters], np.int32)
        base = len(self.base.texts)
        result = spelled.copy()
        new = spelled >= base
        result[new] = table[spelled[new] - base]
        return result

    def encode(self, texts: Iterable[str], threads: int = 1) -> Symbols:
        """Symbols after all merges, with borders; -1 - k stands for k tokens of bytes."""
        return self.apply(self.spell(texts), threads)

    def apply(self, symbols: Symbols, threads: int = 1) -> Symbols:
        """Symbols after all merges."""
        left, right, made, rank = self.columns
        return _bpe.apply_merges(symbols, left, right, made, rank, threads)

    def trees(self, texts: Sequence[bytes]) -> Symbols:
        """[n, 4]: how many symbols each text alone becomes, the first of them, and the two halves of its last merge.

        The text is spelled as it is: nothing is put before it, nothing is cut.
        """
        if not texts:
            return np.zeros((0, 4), np.int32)
        left, right, made, rank = self.columns
        return _bpe.last_merges(self.alone(texts), left, right, made, rank)

    def alone(self, texts: Sequence[bytes]) -> Symbols:
        """Symbols of each text before any merge, with a border behind it; nothing is put before it, nothing is cut."""
        symbols = self.symbols
        flat: list[int] = []
        for text in texts:
            if self.base.kind == "byte-level":
                flat += [symbols[bytes([byte])] for byte in text]
            else:
                flat += [symbols.get(character.encode(), UNKNOWN) for character in text.decode()]
            flat.append(END)
        return np.array(flat, np.int32)

    def unreachable(self) -> list[int]:
        """Numbers of the new pieces that their own text does not become."""
        trees = self.trees(self.pieces)
        base = len(self.base.texts)
        return [
            number
            for number, (count, first) in enumerate(trees[:, :2].tolist())
            if count != 1 or first != base + number
        ]


UNKNOWN = 2**30
"""Symbol of a character that no vocabulary has; no merge takes it."""


def token_counts(symbols: Symbols, size: int) -> NDArray[np.int64]:
    """How often each symbol is a token."""
    return np.bincount(symbols[symbols >= 0], minlength=size).astype(np.int64)


def tokens_in(symbols: Symbols) -> int:
    """Number of tokens, those of bytes included."""
    return int((symbols >= 0).sum() - (symbols[symbols < END] - END).sum())


def squares_by_block(symbols: Symbols, size: int) -> NDArray[np.float64]:
    """Sum over blocks of the text of how often each symbol is a token in the block, squared."""
    at = np.flatnonzero(symbols >= 0)
    blocks = len(symbols) // BLOCK + 1
    met, counts = np.unique(symbols[at].astype(np.int64) * blocks + at // BLOCK, return_counts=True)
    return np.bincount(met // blocks, counts.astype(np.float64) ** 2, size).astype(np.float64)


def pruned(ranked: Ranked, symbols: Symbols, target: int, threads: int = 1, *, fixed: int = 0) -> tuple[bytes, ...]:
    """The pieces without the least useful ones; what another piece is made of stays.

    What a piece is worth is the tokens that the text would have more without it: one for each time that it is a token,
    and the bytes of a character but one. CAUTION standard errors are taken off the number of times, which blocks of the
    text are compared for: a name that fills one chapter is worth less than a word that stands everywhere as often.
    Pieces that cannot be reached go first.

    Args:
        ranked: the base and the pieces.
        symbols: a corpus as `Ranked.spell` gives it.
        target: how many pieces are kept.
        threads: of the encoder.
        fixed: how many of the first pieces stay whatever they are worth.
    """
    base = len(ranked.base.texts)
    encoded = ranked.apply(symbols, threads)
    counts = token_counts(encoded, base + len(ranked.pieces))
    squares = squares_by_block(encoded, len(counts))
    trees = ranked.trees(ranked.pieces)
    gone = set(ranked.unreachable())
    halves: dict[int, tuple[int, int]] = {}
    users: Counter[int] = Counter()
    for number, (left, right) in enumerate(trees[:, 2:].tolist()):
        if number not in gone and left >= 0:
            halves[base + number] = (left, right)
            users.update((left, right))
    alive = {base + number for number in range(len(ranked.pieces)) if number not in gone}

    def worth(symbol: int) -> float:
        saved = 1 if symbol in halves else len(ranked.pieces[symbol - base]) - 1
        return float(saved * (counts[symbol] - CAUTION * np.sqrt(squares[symbol])))

    heap = [(worth(symbol), -symbol) for symbol in alive if not users[symbol] and symbol >= base + fixed]
    heapq.heapify(heap)
    while len(alive) > target and heap:
        value, symbol = heapq.heappop(heap)
        symbol = -symbol
        if symbol not in alive or users[symbol]:
            continue
        if value != worth(symbol):
            heapq.heappush(heap, (worth(symbol), -symbol))
            continue
        alive.discard(symbol)
        for half in halves.get(symbol, ()):
            counts[half] += counts[symbol]
            squares[half] += squares[symbol]
            users[half] -= 1
            if half in alive and not users[half] and half >= base + fixed:
                heapq.heappush(heap, (worth(half), -half))
    return tuple(text for number, text in enumerate(ranked.pieces) if base + number in alive)


def unreachable(base: Base) -> list[bytes]:
    """Texts of a tokenizer's pieces that its own merges never make.

    A piece can be reached where its own text, spelled in characters or bytes with nothing before it and nothing cut,
    becomes that one token by all the merges. A BPE merges what neighbours stand beside it alone, so a piece that is not
    made from its own text is not made in any other text either: merges inside it are the same there, until one joins it
    with what stands beside it. A base with ignore_merges takes a chunk that is a piece as that piece, too.
    """
    trees = Ranked(base, ()).trees(base.texts)[:, :2].tolist()
    dead = (text for symbol, text in enumerate(base.texts) if trees[symbol] != [1, symbol])
    return [text for text in dead if not base.stands_whole(text)]
