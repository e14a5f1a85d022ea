"""Overrides from the command line: `a.b.c=value`, the value read as YAML, list items by their index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_lm_zh.config.document import Document, KeyPath, describe, dotted, parse_value
from megatron_lm_zh.errors import UserError


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[UserError]:
    """Writes each `a.b.c=value` into the document's values, in order, and returns what could not be written.

    Missing sections are made. `data.train.0.path=x` sets a list's item; the index after the last one adds an item.
    """
    problems = []
    for override in overrides:
        try:
            _apply(document, override)
        except UserError as error:
            problems.append(error)
    return problems


def _apply(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    where = f"override {override if len(override) <= 40 else override[:37] + '...'}"
    if not equals or not all(key.split(".")):
        raise UserError("not an override", where=where, expected="key=value, e.g. optim.lr=3e-4")
    *parents, last = key.split(".")
    container: Any = document.values
    path: KeyPath = ()
    for word in parents:
        step = _step(container, word, path, where)
        if isinstance(container, list):
            if step == len(container):
                container.append({})
        elif container.get(step) is None:
            container[step] = {}
        container = container[step]
        path = (*path, step)
    step = _step(container, last, path, where)
    value = parse_value(text, where)
    if isinstance(container, list) and step == len(container):
        container.append(value)
    else:
        container[step] = value
    path = (*path, step)
    for place in [place for place in document.places if place[: len(path)] == path]:
        del document.places[place]
    document.places[path] = where


def _step(container: Any, word: str, path: KeyPath, where: str) -> str | int:
    """The key or index that `word` means in `container`; an index may be one past the end."""
    if isinstance(container, dict):
        return word
    if isinstance(container, list):
        if word.isdecimal() and int(word) <= len(container):
            return int(word)
        expected = f"an index from 0 to {len(container)}"
        raise UserError(f"{dotted(path)} is a list and has no item {word!r}", where=where, expected=expected)
    raise UserError(f"{dotted(path)} is {describe(container)} and has no key {word!r}", where=where)
