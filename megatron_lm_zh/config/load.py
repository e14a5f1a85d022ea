"""Loading a config: YAML and overrides in, one frozen Config out, or every mistake at once, each in one line."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from megatron_lm_zh.config.document import Document, KeyPath, dump, read_document
from megatron_lm_zh.config.megatron_fields import TABLES
from megatron_lm_zh.config.overrides import apply_overrides
from megatron_lm_zh.config.passthrough import check_table
from megatron_lm_zh.config.problems import problems_of
from megatron_lm_zh.config.rules import broken_rules
from megatron_lm_zh.config.schema import Config, Model
from megatron_lm_zh.errors import UserError, UserErrors

Value = TypeVar("Value")
Checked: TypeAlias = tuple[Value | None, dict[KeyPath, UserError]]
"""A value, or None, and what is wrong with its document, by key path."""


def load_config(path: str | Path, overrides: Sequence[str] = (), *, world: int | None = None) -> Config:
    """Reads and checks a config.

    Args:
        path: YAML file.
        overrides: `a.b.c=value`, applied in order after the file.
        world: number of ranks, where it is known; rules about the layout then hold for it.

    Raises:
        UserErrors: every unknown key, wrong type, bad `megatron:` field and broken rule, in the order of the file.
    """

    def check(document: Document) -> Checked[Config]:
        _fill_empty_sections(document)
        return _validate(document, world)

    return load_document(path, overrides, check)


def load_document(path: str | Path, overrides: Sequence[str], check: Callable[[Document], Checked[Value]]) -> Value:
    """Reads and checks a YAML file of any schema.

    Args:
        path: YAML file.
        overrides: `a.b.c=value`, applied in order after the file.
        check: the value of a document, or what is wrong with it; often `validated` of its schema.

    Raises:
        UserErrors: all that is wrong, bad overrides first, then in the order of the file.
    """
    document = read_document(path)
    problems = apply_overrides(document, overrides)
    value, found = check(document)
    problems += [found[path] for path in sorted(found, key=lambda path: _order(document, path))]
    if problems or value is None:
        raise UserErrors(problems)
    return value


def validated(schema: type[Value], document: Document) -> Checked[Value]:
    """A document as a pydantic dataclass."""
    try:
        # JSON mode: strict types, and yet lists make tuples and mappings make dataclasses.
        return TypeAdapter(schema).validate_json(json.dumps(document.values)), {}
    except ValidationError as error:
        return None, problems_of(error, document, schema)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every default written out; `load_config` reads it back to an equal Config."""
    return dump(as_dict(config))


def as_dict(config: Config | Model) -> dict[str, Any]:
    """The resolved config, or its `model` section, as plain dicts, lists and scalars, as YAML and JSON hold them."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def _fill_empty_sections(document: Document) -> None:
    """Takes a section whose keys are all commented out (YAML: null) for an empty one."""
    for name, value in list(document.values.items()):
        if value is None and name == "schedule":
            del document.values[name]
        elif value is None:
            document.values[name] = {}


def _validate(document: Document, world: int | None) -> Checked[Config]:
    """The config, or None, and what is wrong, by key path.

    The rules need a whole Config. Where keys failed, they run on what is left without those keys, and rules that read
    one of them are not asked.
    """
    found = _megatron_problems(document)
    config, failed = validated(Config, document)
    found |= failed
    rest = config
    if config is None:
        rest, _ = validated(Config, dataclasses.replace(document, values=_without(document.values, failed)))
    if rest is not None:
        for rule, error in broken_rules(rest, world, unknown=failed):
            places = [path for path in rule.paths if path in document.places]
            path = places[0] if places else rule.paths[0]
            placed = UserError(error.what, where=document.place(path), expected=error.expected, mend=error.mend)
            found[*path, rule.name] = placed  # the rule's name keeps apart two errors of one key
    return config, found


def _without(values: dict[str, Any], paths: Iterable[KeyPath]) -> dict[str, Any]:
    """A copy of `values` without the keys at `paths`."""
    rest = copy.deepcopy(values)
    last_items_first = sorted(paths, key=lambda path: [str(step).zfill(9) for step in path], reverse=True)
    for path in last_items_first:  # so that the indices of the others hold
        container: Any = rest
        with contextlib.suppress(KeyError, IndexError, TypeError):  # what is not there need not be taken away
            for step in path[:-1]:
                container = container[step]
            del container[path[-1]]
    return rest


def _megatron_problems(document: Document) -> dict[KeyPath, UserError]:
    problems: dict[KeyPath, UserError] = {}
    for table in TABLES:
        section = document.values.get(table)
        values = section.get("megatron") if isinstance(section, dict) else None
        if not isinstance(values, dict):
            continue
        for key, error in check_table(table, values).items():
            path = (table, "megatron", key)
            problems[path] = UserError(error.what, where=document.place(path), expected=error.expected, mend=error.mend)
    return problems


def _order(document: Document, path: KeyPath) -> tuple[int, int]:
    """Sorts errors by line, the file's before the overrides'."""
    place = document.place(path)
    line = place.removeprefix(f"{document.name}:")
    return (0, int(line)) if line.isdecimal() else (1, 0) if place != document.name else (0, 0)
