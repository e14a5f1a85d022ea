"""YAML 1.2 values, the line of every key, and what is no valid document."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from megatron_lm_zh.config.document import dump, parse_value, read_document
from megatron_lm_zh.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("12", 12),
        ("-012", -12),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000_000", 1_000_000),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("", None),
        ("99,1,0", "99,1,0"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("中文", "中文"),
        ("[5, 8]", [5, 8]),
        ("{kind: constant}", {"kind": "constant"}),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_value(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_places_are_the_lines_of_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# comment\nrun:\n  dir: x\n\ndata:\n  train:\n    - path: a\n    - path: b\n")
    document = read_document(path)
    assert document.values == {"run": {"dir": "x"}, "data": {"train": [{"path": "a"}, {"path": "b"}]}}
    assert document.place(("run", "dir")) == f"{path}:3"
    assert document.place(("data", "train", 1, "path")) == f"{path}:8"
    assert document.place(("data", "split")) == f"{path}:5"  # absent: the section around it
    assert document.place(("optim", "lr")) == str(path)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1\nc: 2\n", ":3", "not valid YAML"),
        ("a:\n\tb: 2\n", ":2", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", ":2", "another document"),
        ("a: 1\nb: 2\na: 3\n", ":3", "a: stands twice; first on line 1"),
        ("a:\n  b: 1\n  b: 1\n", ":3", "a.b: stands twice"),
        ("1: x\n", ":1", "not text"),
        ("a: 1\nb: !!python/name:os.system {}\n", ":2", "unknown YAML tag"),
        ("a: !!int many\n", ":1", "'many' is no int"),
        ("a: &x [*x]\n", "", "nested more than"),
        ("- a\n", "", "the file holds a list; expected a mapping"),
        ("", "", "the file is empty"),
        ("a: \x01\n", "", "not valid YAML"),
    ],
)
def test_what_is_no_config_file_is_one_line(tmp_path: Path, text: str, line: str, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_document(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{line}: ")
    assert words in message
    assert "\n" not in message


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in ((tmp_path / "absent.yaml", "No such file"), (tmp_path, "directory"), (binary, "not UTF-8")):
        with pytest.raises(UserError, match=words):
            read_document(path)


@pytest.mark.parametrize(
    "text", ["1e5", "no", "null", "12", "0o7", "", "a: b", "# x", "中文", "1_0", "~", "2024-01-01"]
)
def test_dump_keeps_text_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(dump({"key": text, "list": [1e-5, 3e20, 7, True, None]}), encoding="utf-8")
    assert read_document(path).values == {"key": text, "list": [1e-5, 3e20, 7, True, None]}
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["key"] == text  # readers of YAML 1.1, too
