"""The audit of a tokenizer beside its base: what is reached, what moved, what it saves, on texts of several domains."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.merge.pieces import joins_digits
from megatron_lm_zh.tokenizer.report.spans import token_bytes
from megatron_lm_zh.tokenizer.report.vocabulary import Vocabulary, vocabulary_of
from megatron_lm_zh.tokenizer.sentencepiece import MODEL_FILE
from megatron_lm_zh.tokenizer.tiktoken import tiktoken_file

SCRIPTS = MappingProxyType({"CJK": "Han", "IDEOGRAPHIC": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"})
WIDTHS = frozenset({"FULLWIDTH", "HALFWIDTH"})
OF_ALL_SCRIPTS = frozenset(
    {"", "MODIFIER", "FEMININE", "MASCULINE", "MICRO", "OHM", "MATHEMATICAL", "SCRIPT", "DOUBLE"}
)
"""First words of the names of letters that any script uses: ª, µ, ℓ."""
EXCERPT = 240
"""Characters of a text that an example shows."""
BEFORE = 60
"""Of them before the place that matters."""


@dataclass(frozen=True)
class Domain:
    """Texts of one kind, e.g. the lines of a file."""

    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A text with a finding.

    Attributes:
        number: of the text in its domain, from 1 on.
        text: it, or some 240 characters of it around the first token with the finding.
    """

    number: int
    text: str


@dataclass(frozen=True)
class DomainFigures:
    """One tokenizer on one domain.

    Attributes:
        name: the domain's name.
        texts: how many.
        bytes: of them in UTF-8.
        characters: in them (code points).
        han_characters: in them.
        tokens: of them.
        changed: texts whose ids are not the base's; None for the base, and where most of the base's ids moved.
        round_trip_failures: texts that do not come back from their tokens.
        disagreements: texts for which the .model and tokenizer.json differ; None where there is one of them alone.
        used_added: share of the added pieces that occur; None where none were added.
        mixed_tokens: tokens whose piece has letters of several scripts.
        changed_examples: the first texts that changed.
        round_trip_examples: the first that do not come back.
        disagreement_examples: the first for which the two files differ.
    """

    name: str
    texts: int
    bytes: int
    characters: int
    han_characters: int
    tokens: int
    changed: int | None
    round_trip_failures: int
    disagreements: int | None
    used_added: float | None
    mixed_tokens: int
    changed_examples: tuple[Example, ...] = ()
    round_trip_examples: tuple[Example, ...] = ()
    disagreement_examples: tuple[Example, ...] = ()

    @property
    def tokens_per_han(self) -> float | None:
        """Tokens for each Han character; None where a tenth of the bytes or less are Han."""
        return self.tokens / self.han_characters if 30 * self.han_characters > self.bytes else None

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token stands for."""
        return self.bytes / max(1, self.tokens)

    @property
    def characters_per_token(self) -> float:
        """Characters of text that a token stands for."""
        return self.characters / max(1, self.tokens)


@dataclass(frozen=True)
class Audit:
    """One tokenizer.

    Attributes:
        name: what it is called in tables.
        kind: e.g. ``SentencePiece BPE``.
        vocab_size: the largest id + 1.
        moved: the base's ids that stand for another piece here, or for none.
        added: pieces that the base does not have.
        unreachable_added: those among them that no text becomes; None where that cannot be told (WordPiece).
        unreachable_base: the base's pieces that no text becomes any more; of the base itself, all that none becomes.
        multi_digit: added pieces with digits side by side.
        script_crossing: added pieces with letters of several scripts.
        lengths: number of added pieces by their characters.
        used_added: share of the added pieces that occur in any domain; None where none were added.
        usage: how often each added piece occurs in all domains, the most frequent first.
        unused: added pieces that occur in no domain.
        domains: figures on each.
    """

    name: str
    kind: str
    vocab_size: int
    moved: int
    added: int
    unreachable_added: tuple[str, ...] | None
    unreachable_base: tuple[str, ...] | None
    multi_digit: tuple[str, ...]
    script_crossing: tuple[str, ...]
    lengths: dict[int, int]
    used_added: float | None
    usage: tuple[int, ...]
    unused: tuple[str, ...]
    domains: tuple[DomainFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """All figures, those that follow from others among them."""
        made = dataclasses.asdict(self)
        for domain, figures in zip(made["domains"], self.domains, strict=True):
            domain["tokens_per_han"] = figures.tokens_per_han
            domain["bytes_per_token"] = figures.bytes_per_token
            domain["characters_per_token"] = figures.characters_per_token
        return made


class Encodes(Protocol):
    """What gives ids for a text."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""
        ...


@dataclass(frozen=True)
class Opened:
    """A tokenizer to be audited: itself, its vocabulary, and its second form where it has one."""

    name: str
    path: Path
    tokenizer: Tokenizer
    twin: Encodes | None
    vocabulary: Vocabulary


def open_tokenizer(path: str | Path, name: str = "") -> Opened:
    """A tokenizer to be audited; a .model's tokenizer.json beside it, or as we write it, is its twin.

    Args:
        path: a .model file, a file in tiktoken's format, or a directory with a .model or Hugging Face files.
        name: what it is called; the file's or directory's name, where empty.

    Raises:
        UserError: nothing loads from it.
    """
    path = Path(path)
    model = path / MODEL_FILE if path.is_dir() else path
    has_model = model.is_file() and tiktoken_file(model) is None
    tokenizer = load_tokenizer("SentencePiece" if has_model else "HuggingFace", path)
    twin: Encodes | None = None
    if has_model and path.is_dir() and (path / "tokenizer.json").is_file():
        twin = load_tokenizer("HuggingFace", path)
    elif has_model and (form := tokenizer.json_form()) is not None and form.prepare is None:
        twin = _Raw(tokenizers.Tokenizer.from_str(form.text(form.added_tokens)))
    return Opened(name or path.stem, path, tokenizer, twin, vocabulary_of(tokenizer, path))


class _Raw:
    """The encoder of a tokenizer.json that is in no file."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def audit(opened: Opened, base: Opened, domains: Sequence[Domain], examples: int = 10) -> Audit:
    """All figures of one tokenizer beside its base, which may be the same.

    Args:
        opened: the tokenizer.
        base: the one it is compared with.
        domains: texts.
        examples: how many texts of each finding are named.
    """
    own, old = opened.vocabulary, base.vocabulary
    old_texts = set(old.pieces.values())
    new = {id_: text for id_, text in own.pieces.items() if text not in old_texts}
    moved = sum(own.names.get(id_) != name for id_, name in old.names.items())
    counts = np.zeros(opened.tokenizer.vocab_size, np.int64)
    sides = _Sides(opened, None if opened is base or 2 * moved > len(old.names) else base, examples)
    mixed = np.array([id_ for id_, text in own.pieces.items() if _is_mixed(text)], np.int64)
    figures = [_on_domain(domain, sides, np.array(list(new), np.int64), mixed, counts) for domain in domains]
    plain = [text.decode(errors="replace") for text in new.values()]
    lengths = np.bincount([len(text) for text in plain], minlength=1)
    dead = own.unreachable
    dead_before = {old.pieces[id_] for id_ in old.unreachable or ()} if opened is not base else set()
    kept = sorted(id_ for id_ in dead or () if id_ not in new and own.pieces[id_] not in dead_before)
    return Audit(
        name=opened.name,
        kind=own.kind,
        vocab_size=opened.tokenizer.vocab_size,
        moved=moved,
        added=len(new),
        unreachable_added=None if dead is None else _shown(own.pieces[id_] for id_ in sorted(dead & new.keys())),
        unreachable_base=None if dead is None else _shown(own.pieces[id_] for id_ in kept),
        multi_digit=tuple(text for text in plain if joins_digits(text)),
        script_crossing=_shown(text for text in new.values() if _is_mixed(text)),
        lengths={length: int(count) for length, count in enumerate(lengths) if count},
        used_added=float(np.mean(counts[list(new)] > 0)) if new else None,
        usage=tuple(sorted((int(counts[id_]) for id_ in new), reverse=True)),
        unused=_shown(text for id_, text in new.items() if not counts[id_]),
        domains=tuple(figures),
    )


def _shown(texts: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(text.decode(errors="backslashreplace") for text in texts)


def _is_mixed(piece: bytes) -> bool:
    text = piece.decode(errors="ignore")
    return not text.isascii() and len(scripts_of(text)) > 1


@dataclass(frozen=True)
class _Sides:
    """A tokenizer and what it is compared with; None where ids cannot be compared."""

    opened: Opened
    base: Opened | None
    examples: int


@dataclass
class _Found:
    """Texts with a finding: how many, and the first of them."""

    limit: int
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, number: int, text: str, tokenizer: Tokenizer, ids: Sequence[int], others: Sequence[int]) -> None:
        """Counts a text, and keeps it with the place where ``others`` leave ``ids``, both ids of it."""
        self.count += 1
        if len(self.examples) >= self.limit:
            return
        if len(text) > EXCERPT:
            same = next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), 0)
            at = len(b"".join(token_bytes(tokenizer, text, ids)[:same]).decode(errors="ignore"))
            begin = max(0, at - BEFORE)
            text = text[begin : begin + EXCERPT]
        self.examples.append(Example(number, text))


def _on_domain(
    domain: Domain, sides: _Sides, new: NDArray[np.int64], mixed: NDArray[np.int64], counts: NDArray[np.int64]
) -> DomainFigures:
    opened, base = sides.opened, sides.base
    tokenizer, twin = opened.tokenizer, opened.twin
    changed, failed, disagreeing = (_Found(sides.examples) for _ in range(3))
    own = np.zeros_like(counts)
    for number, text in enumerate(domain.texts, 1):
        ids = tokenizer.encode(text)
        np.add.at(own, ids, 1)
        if base is not None and ids != (before := base.tokenizer.encode(text)):
            changed.add(number, text, tokenizer, ids, before)
        if tokenizer.decode(ids) != text:
            failed.add(number, text, tokenizer, ids, ids)
        if twin is not None and ids != (other := twin.encode(text)):
            disagreeing.add(number, text, tokenizer, ids, other)
    counts += own
    return DomainFigures(
        name=domain.name,
        texts=len(domain.texts),
        bytes=sum(len(text.encode()) for text in domain.texts),
        characters=sum(map(len, domain.texts)),
        han_characters=sum(map(han_characters, domain.texts)),
        tokens=int(own.sum()),
        changed=None if base is None else changed.count,
        round_trip_failures=failed.count,
        disagreements=None if twin is None else disagreeing.count,
        used_added=float((own[new] > 0).mean()) if len(new) else None,
        mixed_tokens=int(own[mixed].sum()),
        changed_examples=tuple(changed.examples),
        round_trip_examples=tuple(failed.examples),
        disagreement_examples=tuple(disagreeing.examples),
    )


def han_characters(text: str) -> int:
    """Han characters of a text, counted as everywhere in this package (csrc/text.cpp)."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    blocks = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x3007, 0x3007), (0x20000, 0x323AF))
    return int(sum(((codes >= first) & (codes <= last)).sum() for first, last in blocks))


def scripts_of(text: str) -> set[str]:
    """Scripts of a text's letters, by the words of their Unicode names; Han and kana are together Japanese."""
    found = set()
    for character in text:
        if character.isalpha():
            first, *others = unicodedata.name(character, "").replace("-", " ").split(" ")
            word = others[0] if first in WIDTHS else first
            if word not in OF_ALL_SCRIPTS:
                found.add(SCRIPTS.get(word, word.title()))
    return found - {"Han"} if "Japanese" in found else found
