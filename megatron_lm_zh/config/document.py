"""A YAML 1.2 document as plain values together with the line on which every key stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_lm_zh.errors import UserError, UserErrors

KeyPath = tuple[str | int, ...]

# The core schema of YAML 1.2 (https://yaml.org/spec/1.2.2, 10.3.2), plus `_` between digits. PyYAML itself follows 1.1,
# where 3e-4 is text and `no` is false.
_INT = r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_DEEPEST = 20
_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(rf"^(?:{_INT})$"), list("-+0123456789")),
    ("float", re.compile(rf"^(?:{_FLOAT})$"), list("-+.0123456789")),
)
_TAGS = frozenset(_TAG + kind for kind in ("map", "seq", "str", "null", "bool", "int", "float"))


class _Loader(yaml.SafeLoader):
    """Composes nodes whose tags follow the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or YAML 1.2 would not read back as text."""


for _name, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


@dataclass
class Document:
    """Values read from a file, with a place ("run.yaml:12", or the override that set it) for every key path."""

    name: str
    """What the file is called in messages."""
    values: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where `path` was written, or else the nearest section around it, or else the file."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[:-1]
        return self.name


def read_document(path: str | Path) -> Document:
    """Reads a YAML file whose top level is a mapping.

    Raises:
        UserError: the file cannot be read or is not YAML.
        UserErrors: keys stand twice or are not text.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read the config: {reason}", where=name, expected="a YAML file") from error
    document = Document(name=name, values={})
    problems: list[UserError] = []
    values = _value(_compose(text, name), name, (), document.places, problems)
    if problems:
        raise UserErrors(problems)
    if not isinstance(values, dict):
        what = "the file is empty" if values is None else f"the file holds {describe(values)}"
        raise UserError(what, where=name, expected="a mapping of sections (run, model, data, ...)")
    document.values = values
    return document


def parse_value(text: str, where: str) -> Any:
    """The value of an override's right-hand side, read as YAML, e.g. ``3e-4``, ``[5, 8]``, ``null``."""
    problems: list[UserError] = []
    value = _value(_compose(text, where, lines=False), where, (), {}, problems)
    if problems:
        raise UserErrors(problems)
    return value


def dump(values: Mapping[str, Any]) -> str:
    """YAML text that `read_document` reads back to equal values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def describe(value: Any) -> str:
    """A value as a message shows it, in YAML's words and cut where it is long."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _compose(text: str, name: str, *, lines: bool = True) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and lines else name
        raise UserError(f"not valid YAML: {error.problem or error.context}", where=where) from error
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=name) from error


def _value(
    node: yaml.Node | None, name: str, path: KeyPath, places: dict[KeyPath, str], problems: list[UserError]
) -> Any:
    """Plain value of a node; notes the place of every key below `path` and the problems met."""
    if len(path) > _DEEPEST:  # an alias inside its own anchor has no end
        problems.append(UserError(f"{dotted(path[:3])}...: nested more than {_DEEPEST} deep", where=name))
        return None
    if node is not None and node.tag not in _TAGS:
        problems.append(UserError(f"unknown YAML tag {node.tag}", where=f"{name}:{node.start_mark.line + 1}"))
        return None
    match node:
        case None:
            return None
        case yaml.MappingNode():
            values: dict[str, Any] = {}
            for key, child in _pairs(node, name, path, problems):
                places[*path, key.value] = f"{name}:{key.start_mark.line + 1}"
                values[key.value] = _value(child, name, (*path, key.value), places, problems)
            return values
        case yaml.SequenceNode():
            items = []
            for index, child in enumerate(node.value):
                places[*path, index] = f"{name}:{child.start_mark.line + 1}"
                items.append(_value(child, name, (*path, index), places, problems))
            return items
        case _:
            return _scalar(node, name, problems)


def _pairs(
    node: yaml.MappingNode, name: str, path: KeyPath, problems: list[UserError]
) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """Key and value nodes of a mapping; keys that are not text or stand twice become problems."""
    first_line: dict[str, int] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        where = f"{name}:{line}"
        if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
            problems.append(UserError(f"a key of {dotted(path) or 'the file'} is not text", where=where))
        elif key.value in first_line:
            full = dotted((*path, key.value))
            problems.append(UserError(f"{full}: stands twice; first on line {first_line[key.value]}", where=where))
        else:
            first_line[key.value] = line
            yield key, child


def _scalar(node: yaml.Node, name: str, problems: list[UserError]) -> Any:
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    digits = text.replace("_", "")
    try:
        match kind:
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(digits, 0) if digits.lower().startswith(("0x", "0o")) else int(digits)
            case "float":
                special = re.fullmatch(r"([-+]?)\.(inf|nan)", digits.lower())
                return float(special[1] + special[2]) if special else float(digits)
    except (ValueError, KeyError):
        problems.append(UserError(f"{text!r} is no {kind}", where=f"{name}:{node.start_mark.line + 1}"))
        return None
    return None


def dotted(path: KeyPath) -> str:
    """``("data", "train", 0, "path")`` as ``data.train.0.path``."""
    return ".".join(map(str, path))
