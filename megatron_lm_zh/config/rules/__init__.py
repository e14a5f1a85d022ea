"""Every rule that crosses fields, in one list, and how to ask them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from megatron_lm_zh.config.rules import (
    attention,
    batch,
    context,
    data,
    experts,
    layout,
    memory,
    model,
    optim,
    pipeline,
    precision,
    router,
    tables,
)
from megatron_lm_zh.config.rules.rule import Rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

_TOPICS = (
    layout,
    pipeline,
    context,
    batch,
    model,
    attention,
    experts,
    router,
    memory,
    precision,
    optim,
    data,
    tables,
)

RULES: tuple[Rule, ...] = tuple(rule for topic in _TOPICS for rule in topic.RULES)

TOPICS: dict[str, str] = {topic.__name__.rpartition(".")[2]: (topic.__doc__ or "").splitlines()[0] for topic in _TOPICS}
"""Name and first line of every file of rules."""


def check(config: Config, world: int | None) -> list[UserError]:
    """What is wrong with `config` on `world` ranks (None: not known), one error a broken rule."""
    return [error for _, error in broken_rules(config, world)]


def broken_rules(
    config: Config, world: int | None, *, unknown: Iterable[tuple[str | int, ...]] = ()
) -> Iterator[tuple[Rule, UserError]]:
    """The rules that `config` breaks, but for those that read a key whose value is `unknown`."""
    blind = set(unknown)
    for rule in RULES:
        if blind.isdisjoint(rule.paths) and (error := rule.check(config, world)):
            if rule.search and world is not None:
                error = UserError(error.what, expected=error.expected, mend=rule.search(config, world, RULES))
            yield rule, error


def rules_reading(key: str) -> list[Rule]:
    """The rules that read `key`, or any key inside it where it is a section."""
    return [rule for rule in RULES if any(read == key or read.startswith(f"{key}.") for read in rule.reads)]
