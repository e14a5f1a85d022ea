"""The audit as rows of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from megatron_lm_zh.tokenizer.report.figures import Audit, Example

Row: TypeAlias = dict[str, str]
"""Column and cell."""
NONE = "-"
MEANINGS = {
    "moved ids": "ids of the base that stand for another piece here, or for none",
    "added": "pieces that the base does not have",
    "unreachable added": "added pieces that no text becomes",
    "unreachable base": "pieces of the base that no text becomes any more; in the base's row, all that none becomes",
    "several digits": "added pieces with digits side by side",
    "mixed scripts": "added pieces with letters of several scripts",
    "added used": "share of the added pieces that occur in the texts",
    "tokens a Han character": "all tokens over the Han characters; only where a tenth of the bytes or more are Han",
    "changed": "texts whose ids are not the base's",
    "not lossless": "texts that do not come back from their tokens",
    "files disagree": "texts for which the .model and tokenizer.json give other ids",
    "mixed tokens": "tokens of the texts whose piece has letters of several scripts",
}
"""What a column says, where its name does not."""
BAD = frozenset({"moved ids", "unreachable added", "unreachable base", "several digits", "mixed scripts"}) | {
    "not lossless",
    "files disagree",
}
"""Columns in which anything but 0 is a fault or a cost."""


def piece_rows(audits: Sequence[Audit]) -> list[Row]:
    """One row for each tokenizer: its pieces."""
    return [
        {
            "tokenizer": one.name,
            "kind": one.kind,
            "ids": f"{one.vocab_size:,}",
            "moved ids": f"{one.moved:,}",
            "added": f"{one.added:,}",
            "added used": _number(one.used_added, "{:.1%}"),
            "unreachable added": _count(one.unreachable_added),
            "unreachable base": _count(one.unreachable_base),
            "several digits": f"{len(one.multi_digit):,}",
            "mixed scripts": f"{len(one.script_crossing):,}",
        }
        for one in audits
    ]


def domain_rows(audits: Sequence[Audit]) -> list[Row]:
    """One row for each domain and tokenizer."""
    rows = []
    for number in range(len(audits[0].domains)):
        for one in audits:
            figures = one.domains[number]
            rows.append(
                {
                    "domain": figures.name,
                    "tokenizer": one.name,
                    "texts": f"{figures.texts:,}",
                    "tokens": f"{figures.tokens:,}",
                    "tokens a Han character": _number(figures.tokens_per_han, "{:.4f}"),
                    "bytes a token": f"{figures.bytes_per_token:.3f}",
                    "characters a token": f"{figures.characters_per_token:.3f}",
                    "changed": _number(figures.changed, "{:,}"),
                    "not lossless": f"{figures.round_trip_failures:,}",
                    "files disagree": _number(figures.disagreements, "{:,}"),
                    "added used": _number(figures.used_added, "{:.1%}"),
                    "mixed tokens": f"{figures.mixed_tokens:,}",
                }
            )
    return rows


def piece_lists(one: Audit) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What was found of a tokenizer's pieces, and the pieces; nothing for what was not."""
    found = {
        "unreachable added": one.unreachable_added,
        "unreachable base": one.unreachable_base,
        "several digits": one.multi_digit,
        "mixed scripts": one.script_crossing,
        "added, used in no text": one.unused,
    }
    yield from ((name, pieces) for name, pieces in found.items() if pieces)


def text_lists(one: Audit) -> Iterator[tuple[str, str, int, tuple[Example, ...]]]:
    """What was found of a tokenizer's texts, the domain, how many and the first of them."""
    for domain in one.domains:
        if domain.changed and domain.tokens_per_han is None:  # Chinese text is meant to change
            yield "changed", domain.name, domain.changed, domain.changed_examples
        if domain.round_trip_failures:
            yield "not lossless", domain.name, domain.round_trip_failures, domain.round_trip_examples
        if domain.disagreements:
            yield "files disagree", domain.name, domain.disagreements, domain.disagreement_examples


def _count(texts: Sequence[str] | None) -> str:
    return NONE if texts is None else f"{len(texts):,}"


def _number(value: float | None, shape: str) -> str:
    return NONE if value is None else shape.format(value)
