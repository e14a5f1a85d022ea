"""Every cross-field rule is broken once, says how to mend it, and reads the keys that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from write_layouts import BROKEN, PAGE, TABLES, page, unchecked

from megatron_lm_zh.config.fields import find
from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.rules import RULES, broken_rules, check, rules_reading
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError, UserErrors

LEGAL = [row for table in TABLES for row in table.LEGAL]
BY_NAME = {rule.name: rule for rule in RULES}


@pytest.mark.parametrize(("name", "overrides", "world", "words"), BROKEN)
def test_broken_rule_says_how_to_mend_it(
    write: Callable[[], Path], name: str, overrides: tuple[str, ...], world: int | None, words: str
) -> None:
    with pytest.raises(UserErrors) as caught:
        load_config(write(), overrides, world=world)
    assert any(words in line for line in str(caught.value).splitlines()), str(caught.value)
    errors = [error for rule, error in broken_rules(unchecked(overrides), world) if rule.name == name]
    assert len(errors) == 1
    assert words in str(errors[0])
    assert errors[0].expected or errors[0].mend
    assert "\n" not in str(errors[0])
    assert any(str(errors[0]).startswith(key.split(".")[0]) for key in BY_NAME[name].reads)


def test_every_rule_is_broken_by_some_test() -> None:
    assert set(BY_NAME) == {name for name, *_ in BROKEN}
    assert len(BY_NAME) == len(RULES)


def test_every_rule_has_a_reason_of_its_own() -> None:
    reasons = [rule.reason for rule in RULES]
    assert all(reason.endswith((".", ").")) and len(reason.split()) > 5 for reason in reasons)
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize(("overrides", "world"), LEGAL)
def test_legal_configs_pass(write: Callable[[], Path], overrides: tuple[str, ...], world: int | None) -> None:
    assert check(load_config(write(), overrides, world=world), world) == []


NEAREST = [
    (16 * 8, ("parallel.tensor=2", "parallel.pipeline=3")),
    (128 * 8, ("parallel.tensor=2", "parallel.pipeline=3")),
    (24, ("parallel.tensor=2", "parallel.pipeline=4", "parallel.context=2")),
    (12, ("model.family=gpt", "model.num_moe_experts=4", "parallel.expert=4", "parallel.pipeline=2")),
    (12, ("parallel.pipeline=4", "parallel.virtual_pipeline=2", "model.num_layers=8", "parallel.context=2")),
]


@pytest.mark.parametrize(("world", "overrides"), NEAREST)
def test_nearest_layouts_are_legal(write: Callable[[], Path], world: int, overrides: tuple[str, ...]) -> None:
    overrides = (*overrides, f"train.global_batch_size={world * 8}")
    with pytest.raises(UserErrors) as caught:
        load_config(write(), overrides, world=world)
    offered = str(caught.value).split("nearest: ")[1].splitlines()[0].split(", or ")
    assert len(offered) in (1, 2)
    for layout in offered:
        sizes = {name: int(size) for name, size in (word.strip("()").split("=") for word in layout.split())}
        data = sizes.pop("data")
        chosen = load_config(write(), [*overrides, *(f"parallel.{axis}={n}" for axis, n in sizes.items())], world=world)
        assert chosen.data_parallel_size(world) == data


class _Recorder:
    """Stands for a config and notes which of its keys are read."""

    def __init__(self, value: Any, path: str, seen: set[str]) -> None:
        self._value, self._path, self._seen = value, path, seen

    @property
    def __class__(self) -> type:  # isinstance() in a rule sees the schedule's own class
        return type(self._value)

    def __getattr__(self, name: str) -> Any:
        prop = getattr(type(self._value), name, None)
        if isinstance(prop, property):
            return prop.fget(self)  # type: ignore[misc]
        value = getattr(self._value, name)
        path = f"{self._path}.{name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            return _Recorder(value, path, self._seen)
        self._seen.add(path)
        return value


@pytest.fixture(scope="module")
def configs() -> list[tuple[Config, int | None]]:
    """Every legal config and every broken one, with its world."""
    rows = [*LEGAL, ((), 3), *((overrides, world) for _, overrides, world, _ in BROKEN)]
    return [(unchecked(overrides), world) for overrides, world in rows]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_says_which_keys_it_reads(configs: list[tuple[Config, int | None]], rule: Any) -> None:
    seen: set[str] = set()
    for config, world in configs:
        error = rule.check(_Recorder(config, "", seen), world)
        assert error is None or isinstance(error, UserError)
    assert seen == set(rule.reads)
    assert all(find(tuple(key.split("."))) for key in rule.reads)


def test_rules_reading_a_key_or_a_section() -> None:
    assert [rule.name for rule in rules_reading("data.split")] == ["split_leaves_training_data"]
    assert {rule.topic for rule in rules_reading("kernels")} == {"precision", "experts", "tables"}
    assert rules_reading("log") == []


def test_the_page_of_layouts_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/config/write_layouts.py"
