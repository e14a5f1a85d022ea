"""Every rule that crosses fields, in one list, and how to ask them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from megatron_lm_zh.config.rules import batch, data, layout, model, optim, precision
from megatron_lm_zh.config.rules.rule import Rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

RULES: tuple[Rule, ...] = (
    *layout.RULES,
    *batch.RULES,
    *model.RULES,
    *precision.RULES,
    *optim.RULES,
    *data.RULES,
)


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
            yield rule, error


def rules_reading(key: str) -> list[Rule]:
    """The rules that read `key`, or any key inside it where it is a section."""
    return [rule for rule in RULES if any(read == key or read.startswith(f"{key}.") for read in rule.reads)]
