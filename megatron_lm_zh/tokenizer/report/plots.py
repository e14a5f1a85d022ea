"""Plots of the audit as HTML and SVG that need nothing else and take the page's colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 240, 60, 40
SERIES = 6
"""Colours there are (`--s0` to `--s5` of the page); more series take them again, with dashes in a curve."""
LAST_LENGTH = 8
"""Added pieces of this many characters and more are one bar."""


def bars(values: Sequence[tuple[str, str, float]], series: Sequence[str], *, shape: str) -> str:
    """Bars in groups, each with its value beside it.

    Args:
        values: group, series and value of each bar; bars of a group stand one after another.
        series: names of all series; they decide the colours.
        shape: how a value is written, e.g. ``{:.3f}``.
    """
    largest = max((value for *_, value in values), default=0.0) or 1.0
    parts, group = [], None
    for name, one, value in values:
        head = f'<div class="group">{html.escape(name)}</div>' if name != group else ""
        group = name
        number = series.index(one)
        parts.append(
            f'{head}<div class="label">{html.escape(one)}</div><div class="track"><div class="bar s{number % SERIES}" '
            f'style="width:{80 * value / largest:.2f}%"></div><span>{shape.format(value)}</span></div>'
        )
    return f'<div class="bars">{"".join(parts)}</div>'


def length_values(name: str, lengths: dict[int, int]) -> list[tuple[str, str, float]]:
    """Bars of how many added pieces have how many characters."""
    short = [(length, lengths.get(length, 0)) for length in range(1, LAST_LENGTH)]
    made = [(f"{length}", name, float(count)) for length, count in short]
    return [*made, (f"{LAST_LENGTH} or more", name, float(sum(n for k, n in lengths.items() if k >= LAST_LENGTH)))]


def usage_curves(usages: Sequence[tuple[str, Sequence[int]]], series: Sequence[str]) -> str:
    """How often each added piece occurs, the most frequent first; pieces that are never used lie on the ground.

    Args:
        usages: name and occurrences of each tokenizer with added pieces.
        series: names of all tokenizers; they decide the colours.
    """
    most = max((max(usage, default=0) for _, usage in usages), default=0)
    pieces = max((len(usage) for _, usage in usages), default=1)
    powers = max(1, math.ceil(math.log10(max(most, 2))))
    inner_width, inner_height = WIDTH - LEFT - 10, HEIGHT - BOTTOM - 10

    def y(count: float) -> float:
        """0 on the ground, 1 a step above it, then powers of ten at equal distances."""
        return 10 + inner_height * (1 - (0 if count < 1 else (1 + math.log10(count)) / (1 + powers)))

    parts = []
    for power in range(-1, powers + 1):
        count = 0 if power < 0 else 10**power
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(count):.1f}" y2="{y(count):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,}</text>')
    for part in range(5):
        x = LEFT + inner_width * part / 4
        anchor = "end" if part == 4 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="{anchor}">{pieces * part // 4:,}</text>')
    middle = LEFT + inner_width / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">added pieces, most frequent first</text>')
    legend = []
    for name, usage in usages:
        number = series.index(name)
        shown = [*range(0, len(usage), max(1, len(usage) // WIDTH)), len(usage) - 1]
        points = " ".join(f"{LEFT + inner_width * i / pieces:.1f},{y(usage[i]):.1f}" for i in shown)
        dashes = f' stroke-dasharray="{2 + 4 * (number // SERIES)} 3"' if number >= SERIES else ""
        parts.append(f'<polyline class="l{number % SERIES}" points="{points}"{dashes}/>')
        unused = sum(count == 0 for count in usage)
        said = f"{html.escape(name)}: {unused:,} of {len(usage):,} unused"
        legend.append(f'<span><i class="bar s{number % SERIES}"></i>{said}</span>')
    return (
        f'<p class="legend">{"".join(legend)}</p><div class="scroll"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="occurrences of added pieces">{"".join(parts)}</svg></div>'
    )
