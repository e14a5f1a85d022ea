"""New pieces for a base, learnt from a corpus or taken from another tokenizer: all are reached, none moves the base.

A corpus continues the base's own training: text is cut as the base cuts it, and the pair of neighbours that is met most
often becomes a piece, again and again. More pieces are made than asked for, then the least useful ones are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.merge.bases import Base
from megatron_lm_zh.tokenizer.merge.donors import Donor
from megatron_lm_zh.tokenizer.merge.learning import LONGEST, learn
from megatron_lm_zh.tokenizer.merge.pieces import ANCHOR, class_of, refusal
from megatron_lm_zh.tokenizer.merge.ranking import Ranked, pruned

SURPLUS = 1.15
"""How many times the asked pieces are made before the least useful ones go."""
RAREST_CHARACTER = 4
"""Occurrences below which a character is not considered."""
JOINS = ("base", "words", "punctuation")


@dataclass(frozen=True)
class Dropped:
    """A piece that is not taken over, and why."""

    text: str
    reason: str


@dataclass(frozen=True)
class Extension:
    """What a base gets.

    Attributes:
        base: the base.
        pieces: new pieces, best rank first.
        intermediates: how many of them are there only because others are made of them.
        dropped: pieces of a donor that are left out.
    """

    base: Base
    pieces: tuple[bytes, ...]
    intermediates: int = 0
    dropped: tuple[Dropped, ...] = ()

    @property
    def ranked(self) -> Ranked:
        """The base with the new pieces."""
        return Ranked(self.base, self.pieces)


@dataclass(frozen=True)
class Rules:
    """How pieces are learnt.

    Attributes:
        joins: whether words join punctuation: ``words`` no, ``punctuation`` yes, ``base`` as the base was trained.
        longest: bytes of a piece at most.
        threads: of the encoder.
        intermediates: pieces at most that a donor does not have; None as many as its pieces need. Characters, which
            take no merge, are not counted.
    """

    joins: str = "base"
    longest: int = LONGEST
    threads: int = 1
    intermediates: int | None = None

    def one_class(self, base: Base) -> bool:
        """Whether a piece's characters must be of one class."""
        if self.joins not in JOINS:
            raise UserError(f"--joins {self.joins}", expected=f"one of {', '.join(JOINS)}")
        return base.one_class if self.joins == "base" else self.joins == "words"


def extend_from_corpus(
    base: Base, texts: Sequence[str], count: int, rules: Rules | None = None, *, behind: Extension | None = None
) -> Extension:
    """A base with pieces learnt from texts.

    Args:
        base: what is extended.
        texts: the corpus.
        count: how many pieces are learnt, intermediates among them.
        rules: how they are learnt.
        behind: an extension of the base whose pieces are kept, such as a donor's; what is learnt ranks behind them.

    Raises:
        UserError: the texts do not give so many pieces.
    """
    rules = rules or Rules()
    if count < 1:
        raise UserError(f"{count} pieces", expected="1 or more")
    given = behind.pieces if behind else ()
    unknown = base.unknown_characters(texts)
    have = set(given)
    characters = sorted(c for c, met in unknown.items() if met >= RAREST_CHARACTER and class_of(c) & ANCHOR)
    characters.sort(key=lambda character: (-unknown[character], character))
    start = Ranked(base, (*given, *(new for character in characters if (new := character.encode()) not in have)))
    spelled = start.spell(texts)
    made = learn(
        start, spelled, int(count * SURPLUS), rules.one_class(base), longest=rules.longest, threads=rules.threads
    )
    ranked = Ranked(base, (*start.pieces, *made))
    found = len(ranked.pieces) - len(given)
    if found < count:
        raise UserError(f"the text gives {found:,} pieces, not {count:,}", mend="give more text or ask for fewer")
    pieces = _kept(ranked, spelled, count, len(given), rules.threads)
    if (left := len(pieces) - len(given)) < count:
        raise UserError(f"only {left:,} pieces can be reached, not {count:,}", mend="give more text")
    if behind is None:
        return Extension(base, pieces)
    made_now = {text.decode(errors="replace") for text in pieces[len(given) :]}
    return replace(behind, pieces=pieces, dropped=tuple(one for one in behind.dropped if one.text not in made_now))


def _kept(ranked: Ranked, symbols: NDArray[np.int32], count: int, given: int, threads: int) -> tuple[bytes, ...]:
    """The given and the most useful pieces, all reachable: where leaving out one breaks another, that one goes too."""
    pieces = pruned(ranked, symbols, given + count, threads, fixed=given)
    while broken := set(Ranked(ranked.base, pieces).unreachable()):
        pieces = tuple(text for number, text in enumerate(pieces) if number not in broken)
    return pieces


def extend_from_donor(base: Base, donor: Donor, texts: Sequence[str] = (), rules: Rules | None = None) -> Extension:
    """A base with another tokenizer's pieces, made by merges of the base's.

    Merges are ranked by how often they are met: in the texts where there are some, in the donor's pieces by the weight
    that the donor gives them otherwise. A piece that no two others spell gets intermediates, which are pieces that the
    donor does not have; where there may be no more of them, it is left out.

    Args:
        base: what is extended.
        donor: the other tokenizer's pieces.
        texts: a corpus like the text to be encoded.
        rules: ``joins`` is not asked: what the donor joins stays joined.
    """
    rules = rules or Rules()
    have = set(base.texts)
    dropped: list[Dropped] = []
    weights: dict[bytes, int] = {}
    for text, weight in donor.pieces.items():
        if text in have:
            continue
        if reason := refusal(text) or base.obstacle(text):
            dropped.append(Dropped(text.decode(errors="replace"), reason))
        else:
            weights[text] = weight
    start = Ranked(base, _new_characters(base, weights))
    targets = [text for text in weights if text not in start.symbols]
    ordered = (
        learn(start, start.spell(texts), len(targets), False, only=targets, threads=rules.threads) if texts else []
    )
    ranked = Ranked(base, (*start.pieces, *ordered))
    ranked = _more(ranked, targets, weights, only=targets, extra=0)
    if rules.intermediates != 0:
        ranked = _more(ranked, targets, weights, extra=rules.intermediates)
        ranked = _more(ranked, targets, weights, only=targets, extra=0)
    pieces, unreached = _used(ranked, set(weights))
    reason = "no merges of the base's and the donor's pieces make it"
    dropped += [Dropped(text.decode(), reason) for text in weights if text in unreached]
    return Extension(base, pieces, sum(text not in weights for text in pieces), tuple(dropped))


def _new_characters(base: Base, texts: Iterable[bytes]) -> tuple[bytes, ...]:
    """Anchors that the texts hold and the base spells in bytes, in the order in which they are met."""
    if base.kind == "byte-level":
        return ()
    characters = (c.encode() for text in texts for c in text.decode() if class_of(c) & ANCHOR)
    have = set(base.texts)
    return tuple(dict.fromkeys(character for character in characters if character not in have))


def _more(
    ranked: Ranked,
    targets: Sequence[bytes],
    weights: dict[bytes, int],
    *,
    extra: int | None,
    only: Sequence[bytes] = (),
) -> Ranked:
    """More pieces, learnt from the targets that are not reached so far, as texts that weigh what the donor says."""
    trees = ranked.trees(targets)
    missing = [text for text, count in zip(targets, trees[:, 0].tolist(), strict=True) if count > 1]
    if not missing:
        return ranked
    allowed = sum(map(len, missing))
    each = [weights[text] for text in missing]
    made = learn(ranked, ranked.alone(missing), allowed, False, only=only, weights=each)
    if extra is not None:
        others = np.cumsum([text not in weights for text in made])
        made = made[: int((others <= extra).sum())]
    return Ranked(ranked.base, (*ranked.pieces, *made))


def _used(ranked: Ranked, wanted: set[bytes]) -> tuple[tuple[bytes, ...], set[bytes]]:
    """The wanted pieces that are reached and what they are made of; and the wanted ones that are not."""
    while True:
        trees = ranked.trees(ranked.pieces)
        broken = set(ranked.unreachable())
        base = len(ranked.base.texts)
        users = {half for number, row in enumerate(trees.tolist()) if number not in broken for half in row[2:]}
        keep = tuple(
            text
            for number, text in enumerate(ranked.pieces)
            if number not in broken and (text in wanted or base + number in users)
        )
        if len(keep) == len(ranked.pieces):
            return keep, wanted - set(keep)
        ranked = Ranked(ranked.base, keep)
