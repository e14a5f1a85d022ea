"""The audit as one HTML page: tables, plots, what was found, and a text under every tokenizer with coloured tokens."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence

from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.report.figures import Audit, Domain, Example, Opened
from megatron_lm_zh.tokenizer.report.plots import bars, length_values, usage_curves
from megatron_lm_zh.tokenizer.report.rows import (
    BAD,
    MEANINGS,
    NONE,
    Row,
    domain_rows,
    piece_lists,
    piece_rows,
    text_lists,
)
from megatron_lm_zh.tokenizer.report.spans import token_bytes

COLOURS = 4
"""Backgrounds of tokens, in turn; borders tell them apart without."""
SAMPLE = 400
"""Characters of a sample text."""
SHORTEST = 20
"""Samples have this many, where there are such."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--dim:#5f5f5f;--back:#fff;--line:#d5d5d5;--edge:#8a8a8a;--bad:#a83200;
--t0:#cfe4f7;--t1:#fbe3b5;--t2:#e3dcf3;--t3:#dcecd4;
--s0:#0072b2;--s1:#d98200;--s2:#009e73;--s3:#cc5f9b;--s4:#4aa3d8;--s5:#7a7a7a}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--dim:#a8a8a8;--back:#16181b;--line:#3a3d42;--edge:#8b9097;
--bad:#ff9d6b;--t0:#1f4463;--t1:#5c4310;--t2:#463a68;--t3:#2d4f2a;
--s0:#4ea5dd;--s1:#eaa23a;--s2:#2fbf95;--s3:#e08abb;--s4:#8cc8ee;--s5:#a5a5a5}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,"Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;
margin:2em auto;max-width:1240px;padding:0 1em;color:var(--ink);background:var(--back)}
h1{font-size:1.7em}h2{font-size:1.25em;margin:2em 0 .5em}h3{font-size:1em;margin:1.5em 0 .3em}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:.5em 0}
td,th{padding:.25em .7em;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums;
vertical-align:bottom;white-space:nowrap}
th{font-weight:600;white-space:normal;min-width:4.5em}th[title]{text-decoration:underline dotted var(--edge)}
td.name,th.name{text-align:left}td.bad{color:var(--bad);font-weight:700}
tr.first td{border-top:2px solid var(--edge)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em;color:var(--dim)}dt{font-weight:600}dd{margin:0}
@media(max-width:600px){dl{grid-template-columns:1fr}dd{margin-bottom:.4em}}
.bars{display:grid;grid-template-columns:minmax(5em,max-content) 1fr;gap:.15em .8em;max-width:760px}
.bars .group{grid-column:1/-1;font-weight:600;margin-top:.4em}.label{overflow-wrap:anywhere}
.track{display:flex;align-items:center;gap:.5em}.bar{height:.95em;min-width:1px;border-radius:2px}
.legend span{display:inline-block;margin-right:1.5em}
.legend .bar{display:inline-block;width:1em;margin-right:.4em;vertical-align:-.1em}
svg{display:block;width:100%;min-width:560px;max-width:760px}svg text{font-size:12px;fill:var(--dim)}
svg polyline{fill:none;stroke-width:2}.grid{stroke:var(--line)}
summary{cursor:pointer;margin:.3em 0}details code{margin:0 .35em .35em 0;display:inline-block;white-space:pre}
code{background:var(--t0);border-radius:3px;padding:0 .3em;font-family:inherit}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:.5em 1.5em;
padding:.6em 0;border-bottom:1px solid var(--line)}
.head{color:var(--dim)}.head b{color:var(--ink)}
.text{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9}
.text span{border-right:1.5px solid var(--edge);border-radius:2px;padding:.12em 0}
.text .alone{box-shadow:inset 0 -3px var(--bad)}
.text small{font:.68em/1 ui-monospace,monospace;color:var(--dim);padding:0 .1em}
""" + "".join(
    [f".t{number}{{background:var(--t{number})}}" for number in range(COLOURS)]
    + [f".s{number}{{background:var(--s{number})}}.l{number}{{stroke:var(--s{number})}}" for number in range(6)]
)


def page(
    audits: Sequence[Audit], opened: Sequence[Opened], domains: Sequence[Domain], *, samples: int = 3, listed: int = 100
) -> str:
    """The page's text.

    Args:
        audits: the base's figures first.
        opened: the same tokenizers.
        domains: the texts of the figures.
        samples: texts of each domain to show side by side.
        listed: pieces of each finding to show; the JSON has all.
    """
    series = [one.name for one in audits]
    parts = [
        f"<h1>Tokenizers beside {html.escape(audits[0].name)}</h1>",
        _table(piece_rows(audits), names=2),
        "<h2>By domain</h2>",
        _table(domain_rows(audits), names=2),
        f"<details><summary>What the columns say</summary>{_meanings()}</details>",
    ]
    if any(figures.tokens_per_han for figures in audits[0].domains):
        per_han = bars(_values(audits, "tokens_per_han"), series, shape="{:.3f}")
        parts += ["<h2>Tokens for each Han character</h2>", per_han]
    parts += ["<h2>Bytes per token</h2>", bars(_values(audits, "bytes_per_token"), series, shape="{:.3f}")]
    extended = [one for one in audits if one.added]
    if extended:
        lengths = [length_values(one.name, one.lengths) for one in extended]
        by_length = [value for values in zip(*lengths, strict=True) for value in values]
        parts += ["<h2>Lengths of added pieces, in characters</h2>", bars(by_length, series, shape="{:,.0f}")]
        parts += ["<h2>Use of added pieces in all texts</h2>"]
        parts += [usage_curves([(one.name, one.usage) for one in extended], series)]
    parts += _findings(audits, opened, listed)
    parts.append("<h2>Side by side</h2>")
    for domain in domains:
        parts.append(f"<h3>{html.escape(domain.name)}</h3>")
        parts += [_sides(opened, text) for text in _samples(domain, samples)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Tokenizers</title>'
        f"<style>{STYLE}</style></head><body>\n{''.join(parts)}\n</body></html>\n"
    )


def _table(rows: Sequence[Row], *, names: int) -> str:
    """A table whose first columns are names; a line above each new first name."""
    head = "".join(_heading(column, number < names) for number, column in enumerate(rows[0]))
    lines, before = [], None
    for row in rows:
        cells = [_cell(column, cell, number < names) for number, (column, cell) in enumerate(row.items())]
        first = next(iter(row.values()))
        is_first = "domain" in row and first != before
        before = first
        lines.append(f"<tr{_class('first' if is_first else '')}>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _heading(column: str, is_name: bool) -> str:
    title = f' title="{html.escape(MEANINGS[column])}"' if column in MEANINGS else ""
    return f"<th{_class('name' if is_name else '')}{title}>{html.escape(column)}</th>"


def _cell(column: str, cell: str, is_name: bool) -> str:
    kind = "name" if is_name else "bad" if column in BAD and cell not in ("0", NONE) else ""
    return f"<td{_class(kind)}>{html.escape(cell)}</td>"


def _meanings() -> str:
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in MEANINGS.items())
    return f"<dl>{rows}</dl>"


def _values(audits: Sequence[Audit], figure: str) -> list[tuple[str, str, float]]:
    """Domain, tokenizer and value of each bar; domains without a value are left out."""
    values = []
    for number in range(len(audits[0].domains)):
        for one in audits:
            value = getattr(one.domains[number], figure)
            if value is not None:
                values.append((one.domains[number].name, one.name, float(value)))
    return values


def _findings(audits: Sequence[Audit], opened: Sequence[Opened], listed: int) -> list[str]:
    """Pieces and texts with a finding, folded."""
    parts = []
    for one, own in zip(audits, opened, strict=True):
        inside = []
        for name, pieces in piece_lists(one):
            shown = "".join(f"<code>{html.escape(_visible(piece))}</code>" for piece in pieces[:listed])
            more = f" the first {listed} of" if len(pieces) > listed else ""
            title = f"{name}:{more} {len(pieces):,} pieces"
            inside.append(f"<details><summary>{html.escape(title)}</summary>{shown}</details>")
        for name, domain, count, examples in text_lists(one):
            sides = "".join(_example(name, opened[0], own, example) for example in examples)
            title = f"{name}: {count:,} texts of {domain}"
            inside.append(f"<details><summary>{html.escape(title)}</summary>{sides}</details>")
        if inside:
            parts += [f"<h3>{html.escape(one.name)}</h3>", *inside]
    note = '<p class="head">Texts are cut around the first place. Tokens that one side has alone are underlined.</p>'
    return ["<h2>What was found</h2>", note, *parts] if parts else []


def _example(finding: str, base: Opened, own: Opened, example: Example) -> str:
    """A text with a finding: under the base and the tokenizer, or under the tokenizer's two files, or alone."""
    text = example.text
    sides = [(own.name, own.tokenizer, own.tokenizer.encode(text))]
    if finding == "changed":
        sides.insert(0, (base.name, base.tokenizer, base.tokenizer.encode(text)))
    elif finding == "files disagree" and own.twin is not None:
        sides.append(("its tokenizer.json", own.tokenizer, own.twin.encode(text)))
    cut = [token_bytes(tokenizer, text, ids) for _, tokenizer, ids in sides]
    shared = frozenset.intersection(*(frozenset(_borders(pieces)) for pieces in cut))
    shown = "".join(_side(name, tokenizer, ids, text, shared) for name, tokenizer, ids in sides)
    return f'<div class="head">text {example.number:,}</div><div class="sides">{shown}</div>'


def _borders(pieces: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where each token begins and ends."""
    ends = list(itertools.accumulate(map(len, pieces)))
    return list(zip([0, *ends], ends, strict=False))


def _samples(domain: Domain, count: int) -> list[str]:
    """Texts from all over a domain, short ones left out where there are others, the long ones cut."""
    texts = [text for text in domain.texts if len(text) >= SHORTEST] or list(domain.texts)
    chosen = [texts[len(texts) * number // count] for number in range(min(count, len(texts)))]
    return [text[:SAMPLE] for text in chosen]


def _sides(opened: Sequence[Opened], sample: str) -> str:
    sides = "".join(_side(one.name, one.tokenizer, one.tokenizer.encode(sample), sample) for one in opened)
    return f'<div class="sides">{sides}</div>'


def _side(
    name: str, tokenizer: Tokenizer, ids: Sequence[int], text: str, shared: frozenset[tuple[int, int]] | None = None
) -> str:
    """A text, each token of it a coloured span; those that are not among the ``shared`` ones are underlined."""
    pieces = token_bytes(tokenizer, text, ids)
    spans = []
    for number, (piece, id_, place) in enumerate(zip(pieces, ids, _borders(pieces), strict=True)):
        marked = " alone" if shared is not None and place not in shared else ""
        spans.append(f'<span class="t{number % COLOURS}{marked}" title="id {id_}">{_shown(piece)}</span>')
    return (
        f'<div><div class="head"><b>{html.escape(name)}</b>, {len(ids):,} tokens</div>'
        f'<div class="text">{"".join(spans)}</div></div>'
    )


def _shown(piece: bytes) -> str:
    """A token's text; bytes that are no character are small, and so are marks for what cannot be seen."""
    if not piece:
        return "<small>no text</small>"
    made = []
    for character in piece.decode(errors="surrogateescape"):
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            made.append(f"<small>{code - 0xDC00:02x}</small>")
        elif character == "\n":
            made.append("<small>\\n</small>\n")
        elif not character.isprintable() and character != "\u3000":
            made.append(f"<small>{html.escape(_visible(character))}</small>")
        else:
            made.append(html.escape(character))
    return "".join(made)


def _visible(text: str) -> str:
    """Text whose control and format characters are written as escapes, and a space at either end as U+2423."""
    text = re.sub(r"^ +| +$", lambda found: "\u2423" * len(found.group()), text)
    return "".join(c if c.isprintable() or c == "\u3000" else c.encode("unicode_escape").decode() for c in text)
