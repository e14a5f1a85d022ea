"""Texts to learn from: every kind of file, sampled by chance that is repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.texts import BLOCK, TextFiles, read_texts

LINES = [f"第{number}行\n" for number in range(9000)]


def test_reads_every_kind(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    plain, lines, table = (tmp_path / f"text.{kind}" for kind in ("txt", "jsonl", "parquet"))
    plain.write_text("".join(LINES), encoding="utf-8")
    lines.write_text("".join(json.dumps({"body": line}) + "\n" for line in LINES), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"body": [*LINES, None], "other": [1] * 9001}), table)
    blocks = read_texts([plain])
    assert "".join(blocks) == "".join(LINES)
    assert 1 < len(blocks) < len("".join(LINES)) / BLOCK + 1
    assert read_texts([lines, table], json_key="body") == LINES + LINES


def test_a_share_is_repeatable(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    part = read_texts([path], share=0.1, seed=3)
    assert 700 < len(part) < 1100
    assert part == read_texts([path], share=0.1, seed=3)
    assert part != read_texts([path], share=0.1, seed=4)
    files = TextFiles((path,), share=0.1, seed=3)
    assert list(files.texts()) == list(files.texts()) == part


def test_says_how_much_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    plain, lines, table = (tmp_path / f"text.{kind}" for kind in ("txt", "jsonl", "parquet"))
    plain.write_text("".join(LINES))
    lines.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    pyarrow.parquet.write_table(pyarrow.table({"text": LINES}), table)
    for path in (plain, lines, table):
        told: list[int] = []
        assert list(TextFiles((path,)).texts(told.append))
        assert sum(told) == path.stat().st_size
        assert path == table or len(told) > 5


def test_a_mark_at_the_top_is_no_text(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    lines.write_bytes(b'\xef\xbb\xbf{"text": "three"}')
    assert read_texts([plain, lines]) == ["one\r\ntwo", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"other": 1}\n', r'a.jsonl:2: broken line: no key "text" \(keys: other\)'),
        ("a.jsonl", b'{"text": 5}\n', 'a.jsonl:1: "text" is no text but int'),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: broken line: no object but list"),
        ("a.jsonl", b'{"text": "x"}\n\ngarbage\n', "a.jsonl:2: broken line: Expecting value"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "a.jsonl:1: surrogates not allowed at character 1"),
        ("a.txt", b"good\n\xff\xfe\n", "a.txt:2: not UTF-8"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "\xe6\x98"}', "a.jsonl:2: not UTF-8"),
        ("a.txt", b"", "no text to learn from"),
        ("a.parquet", b"garbage", "not read"),
        ("a.csv", b"x", "unknown kind of file"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_texts([tmp_path / name])
    assert "\n" not in str(raised.value)


def test_bad_columns_are_one_line(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "year": [1999]}), path)
    with pytest.raises(UserError, match=r'a.parquet: no column "text" \(columns: body, year\)'):
        read_texts([path])
    with pytest.raises(UserError, match='a.parquet: row 1: "year" is no text but int'):
        read_texts([path], json_key="year")


def test_bad_shares_and_names_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_texts([tmp_path / "missing.txt"])
    with pytest.raises(UserError, match="a share of 0"):
        read_texts([tmp_path / "missing.txt"], share=0)
