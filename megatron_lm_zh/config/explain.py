"""What `mlzh config explain KEY` says: a key's type, default and meaning, and the rules that read it."""

from __future__ import annotations

import textwrap

from megatron_lm_zh.config.document import KeyPath, dotted
from megatron_lm_zh.config.fields import Key, all_keys, find, keys_of, valid_names
from megatron_lm_zh.config.megatron_fields import TABLES, megatron_fields, version_text
from megatron_lm_zh.config.passthrough import mend_for
from megatron_lm_zh.config.rules import rules_reading
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.families.registry import FAMILIES, families_using

_WIDTH = 100


def explain(name: str) -> str:
    """The manual of one key, section or `<section>.megatron.<field>`, as text.

    Raises:
        UserError: the schema (or the installed megatron-core) has no such key; names the nearest.
    """
    path: KeyPath = tuple(name.split("."))
    if len(path) == 3 and path[1] == "megatron" and path[0] in TABLES:
        return _explain_megatron(str(path[0]), str(path[2]))
    key = find(path)
    if key is None:
        raise _unknown(path)
    name = dotted(key.path)
    return _explain_section(name, key) if key.sections else _explain_key(name, key)


def explain_all() -> str:
    """One line for each section."""
    return _table([(name, key.doc) for name, key in keys_of(Config).items()])


def _explain_key(name: str, key: Key) -> str:
    lines = [f"{name}: {key.type_name}", f"default: {key.default}", *_wrapped(key.doc), *_families(key), *_rules(name)]
    if key.path[-1] == "megatron":
        lines.append(f"one of them: mlzh config explain {name}.FIELD (fields of {version_text()})")
    return "\n".join(lines)


def _explain_section(name: str, key: Key) -> str:
    parts = [f"{name}: {key.type_name} ({key.default})", *_wrapped(key.doc), *_families(key)]
    for section in key.sections:
        keys = keys_of(section)
        if "kind" in keys:
            parts.append(f"\nkind: {' | '.join(keys['kind'].choices)}")
            parts += _wrapped(section.__doc__ or "")
        parts.append(_table([(inner, f"{k.type_name}; default {k.default}. {k.doc}") for inner, k in keys.items()]))
    return "\n".join(parts)


def _explain_megatron(table: str, name: str) -> str:
    fields = megatron_fields(table)
    full = f"{table}.megatron.{name}"
    if name not in fields:
        close = nearest(name, fields)
        guess = f"did you mean {table}.megatron.{close}?" if close else ""
        raise UserError(f"{full}: {version_text()} has no such field in {TABLES[table][-1][1]}", mend=guess)
    field = fields[name]
    mend = mend_for(table, name)
    note = [f"not to be set here: {mend}"] if mend else []
    head = [f"{full}: {field.type_name}", f"default: {field.default} ({field.owner}, {version_text()})"]
    return "\n".join([*head, *note, *_wrapped(field.doc)])


def _families(key: Key) -> list[str]:
    """Which families use a key of the `model` section, where not all do."""
    if key.path[0] != "model" or len(key.path) == 1:
        return []
    using = families_using(str(key.path[1]))
    return [] if len(using) == len(FAMILIES) else [f"families that use it: {', '.join(using)}"]


def _rules(name: str) -> list[str]:
    rules = rules_reading(name)
    return ["rules that read it:", *(f"  {rule.name}: {rule.reason}" for rule in rules)] if rules else []


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH)


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    indent = " " * (width + 2)
    return "\n".join(
        textwrap.fill(f"  {name:<{width}}{' '.join(text.split())}", _WIDTH, subsequent_indent=indent)
        for name, text in rows
    )


def _unknown(path: KeyPath) -> UserError:
    names = [*valid_names(()), *(dotted(key.path) for key in all_keys())]
    close = nearest(dotted(path), names)
    same_name = [name for name in names if name.split(".")[-1] == path[-1]]
    guess = same_name[0] if same_name else close
    mend = f"did you mean {guess}?" if guess else "mlzh config explain lists the sections"
    return UserError(f"{dotted(path)}: no such key", mend=mend)
